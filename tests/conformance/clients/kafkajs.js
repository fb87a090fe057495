// kafkajs, with its admin client. serve.go describes what such a program reads and prints.
'use strict'
const { Kafka, CompressionTypes, ConfigResourceTypes, PartitionAssigners, logLevel } = require('kafkajs')
const readline = require('readline')

const [bootstrap, mode, wanted] = process.argv.slice(2)
const kafka = new Kafka({ clientId: 'conformance', brokers: bootstrap.split(','), logLevel: logLevel.NOTHING, retry: { retries: 50, maxRetryTime: 2000 } })
const hasty = new Kafka({ clientId: 'conformance', brokers: bootstrap.split(','), logLevel: logLevel.NOTHING, retry: { retries: 2 } })

class NotOffered extends Error {}

const say = value => console.log(JSON.stringify(value))
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const codecs = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }
const kinds = { topic: ConfigResourceTypes.TOPIC, broker: ConfigResourceTypes.BROKER }

async function administer (work) {
  const admin = hasty.admin()
  await admin.connect()
  try {
    return await work(admin)
  } finally {
    await admin.disconnect()
  }
}

function asRecord (partition, message) {
  const headers = []
  for (const [name, values] of Object.entries(message.headers || {})) {
    for (const value of [].concat(values)) headers.push([name, value.toString()])
  }
  const text = data => data === null || data === undefined ? null : data.toString()
  return { key: text(message.key), value: text(message.value), headers, partition, timestamp_ms: Number(message.timestamp), offset: Number(message.offset) }
}

// kafkajs reads in a group only: it gets one of its own, and seeks.
async function reading (topic, partitions, start, options, work) {
  const consumer = kafka.consumer({ groupId: `reader-${process.pid}-${Math.random()}`, ...options })
  const found = []
  let wake = () => {}
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    eachMessage: async ({ partition, message }) => {
      if (!partitions.includes(partition)) return
      found.push(asRecord(partition, message))
      wake()
    }
  })
  if (start >= 0) for (const partition of partitions) consumer.seek({ topic, partition, offset: String(start) })
  const until = async count => { while (found.length < count) await new Promise(resolve => { wake = resolve }) }
  const result = await work(consumer, found, until)
  consumer.disconnect().catch(() => {}) // It waits for the fetch under way, which may take long.
  return result
}

const verbs = {
  async produce ({ topic, records, acks, codec, idempotent, pause_ms: pauseMs, timeout_ms: timeoutMs }) {
    if (!(codec in codecs)) throw new NotOffered() // It has the others only as plugins of other authors.
    const retries = timeoutMs < 10000 ? 2 : 200
    const producer = kafka.producer({ idempotent, maxInFlightRequests: idempotent ? 1 : undefined, retry: { retries, maxRetryTime: 500 } })
    await producer.connect()
    const problems = records.map(() => null)
    const send = async (first, count) => {
      const messages = records.slice(first, first + count).map(each => {
        const headers = {}
        for (const [name, value] of each.headers) headers[name] = name in headers ? [].concat(headers[name], value) : value
        return {
          key: each.key, value: each.value, headers,
          ...(each.partition === null ? {} : { partition: each.partition }),
          ...(each.timestamp_ms === null ? {} : { timestamp: String(each.timestamp_ms) })
        }
      })
      try {
        await producer.send({ topic, messages, acks: acks === 'all' ? -1 : Number(acks), compression: codecs[codec] })
      } catch (error) {
        problems.fill(`${error.name}: ${error.message}`, first, first + count)
      }
    }
    if (pauseMs) {
      for (let first = 0; first < records.length; first += 20) {
        await send(first, 20)
        await sleep(20 * pauseMs)
      }
    } else {
      await send(0, records.length)
    }
    await producer.disconnect()
    return problems
  },

  read: ({ topic, partitions, start, count, rack, wait_ms: waitMs }) => reading(topic, partitions, start, { rackId: rack, maxWaitTimeInMs: waitMs }, async (_consumer, found, until) => {
    await until(count)
    return found.slice(0, count)
  }),

  seek: ({ topic, count, back_to: backTo }) => reading(topic, [0], 0, {}, async (consumer, found, until) => {
    await until(count)
    const first = found.splice(0).slice(0, count)
    consumer.seek({ topic, partition: 0, offset: String(backTo) })
    while (!found.some(each => each.offset === backTo)) await sleep(20)
    return [...first, found.find(each => each.offset === backTo)].map(each => each.offset)
  }),

  pause: ({ topic, count }) => reading(topic, [0, 1], -2, {}, async (consumer, found, until) => {
    consumer.pause([{ topic, partitions: [0] }])
    for (const partition of [0, 1]) consumer.seek({ topic, partition, offset: '0' })
    await sleep(1000) // What it had fetched before is forgotten by the seek.
    found.splice(0)
    for (const partition of [0, 1]) consumer.seek({ topic, partition, offset: '0' })
    await until(count)
    const before = found.splice(0)
    consumer.resume([{ topic, partitions: [0] }])
    await until(count)
    return [before.map(each => each.partition), found.map(each => each.partition)]
  }),

  offset_for: ({ topic, partition, timestamp_ms: timestamp }) => administer(async admin => {
    const found = await admin.fetchTopicOffsetsByTimestamp(topic, timestamp)
    return Number(found.find(each => each.partition === partition).offset)
  }),

  commit: async ({ group, place: [topic, partition], offset, metadata }) => {
    const consumer = kafka.consumer({ groupId: group, maxWaitTimeInMs: 100 })
    await consumer.connect()
    await consumer.subscribe({ topic })
    const fetched = new Promise(resolve => consumer.on(consumer.events.FETCH, resolve))
    await consumer.run({ autoCommit: false, eachMessage: async () => {} })
    await fetched // Before that it drops a commit without a word.
    await consumer.commitOffsets([{ topic, partition, offset: String(offset), metadata }])
    await consumer.disconnect()
    return null
  },

  committed: ({ group, place: [topic, partition] }) => administer(async admin => {
    const [found] = await admin.fetchOffsets({ groupId: group, topics: [topic] })
    const one = found.partitions.find(each => each.partition === partition)
    return [Number(one.offset), one.metadata]
  }),

  create_topic: ({ topic, count, assignment, config, validate_only: validateOnly }) => administer(async admin => {
    const shape = assignment.length
      ? { replicaAssignment: assignment.map((replicas, partition) => ({ partition, replicas })), numPartitions: -1, replicationFactor: -1 }
      : { numPartitions: count, replicationFactor: 3 }
    const configEntries = Object.entries(config || {}).map(([name, value]) => ({ name, value }))
    const made = await admin.createTopics({ validateOnly, topics: [{ topic, configEntries, ...shape }], waitForLeaders: !validateOnly })
    if (!made) throw new Error('the topic exists') // This is its way to say so.
    return null
  }),

  delete_topic: ({ topic }) => administer(async admin => { await admin.deleteTopics({ topics: [topic] }); return null }),

  add_partitions: ({ topic, count }) => administer(async admin => {
    await admin.createPartitions({ topicPartitions: [{ topic, count }] })
    return null
  }),

  list_topics: () => administer(admin => admin.listTopics()),

  describe_topic: ({ topic }) => administer(async admin => {
    const { topics: [found] } = await admin.fetchTopicMetadata({ topics: [topic] })
    const parts = found.partitions.sort((a, b) => a.partitionId - b.partitionId)
    return parts.map(({ leader, replicas, isr }) => ({ leader, replicas, isr }))
  }),

  describe_config: ({ kind, name }) => administer(async admin => {
    const { resources: [found] } = await admin.describeConfigs({ resources: [{ type: kinds[kind], name }], includeSynonyms: false })
    return Object.fromEntries(found.configEntries.map(each => [each.configName, each.configValue]))
  }),

  replace_config: ({ kind, name, config }) => administer(async admin => {
    const configEntries = Object.entries(config).map(([name, value]) => ({ name, value }))
    await admin.alterConfigs({ resources: [{ type: kinds[kind], name, configEntries }] })
    return null
  }),

  delete_records: ({ place: [topic, partition], before }) => administer(async admin => {
    await admin.fetchTopicOffsets(topic) // Without this it does not know the leader.
    await admin.deleteTopicRecords({ topic, partitions: [{ partition, offset: String(before) }] })
    return null
  }),

  list_offsets: ({ place: [topic, partition], spec }) => administer(async admin => {
    const found = (await admin.fetchTopicOffsets(topic)).find(each => each.partition === partition)
    if (!(spec in { earliest: 1, latest: 1 })) throw new NotOffered()
    return Number(spec === 'earliest' ? found.low : found.high)
  }),

  list_groups: () => administer(async admin => (await admin.listGroups()).groups.map(each => each.groupId)),

  describe_group: ({ group }) => administer(async admin => {
    const { groups: [found] } = await admin.describeGroups([group])
    return { state: found.state.toLowerCase(), members: found.members.length }
  }),

  delete_group: ({ group }) => administer(async admin => { await admin.deleteGroups([group]); return null }),

  group_offsets: ({ group }) => administer(async admin => {
    const found = await admin.fetchOffsets({ groupId: group })
    return found.flatMap(({ topic, partitions }) => partitions.map(each => [topic, each.partition, Number(each.offset)]))
  }),

  alter_offset: ({ group, place: [topic, partition], offset }) => administer(async admin => {
    await admin.setOffsets({ groupId: group, topic, partitions: [{ partition, offset: String(offset) }] })
    return null
  }),

  describe_cluster: () => administer(async admin => {
    const { brokers, controller, clusterId } = await admin.describeCluster()
    return { id: clusterId, controller, brokers: brokers.map(each => each.nodeId).sort() }
  }),

  reassign: ({ place: [topic, partition], replicas }) => administer(async admin => {
    await admin.alterPartitionReassignments({ topics: [{ topic, partitionAssignment: [{ partition, replicas }] }] })
    return null
  }),

  reassignments: () => administer(async admin => {
    const { topics } = await admin.listPartitionReassignments({})
    return topics.flatMap(({ topic, partitions }) => partitions.map(each => [topic, each.partition]))
  })
}

async function member ({ topics, group, strategies, instance, protocol, session_ms: sessionMs }) {
  // It looks for the topics of a pattern only once, when it subscribes.
  const isPattern = topics[0].startsWith('^')
  if (protocol === 'consumer' || instance || isPattern || strategies.some(name => name !== 'roundrobin')) throw new NotOffered()
  const consumer = kafka.consumer({
    groupId: group, sessionTimeout: sessionMs, heartbeatInterval: 300, metadataMaxAge: 1000, maxWaitTimeInMs: 200, partitionAssigners: [PartitionAssigners.roundRobin]
  })
  consumer.on(consumer.events.GROUP_JOIN, event => {
    const places = Object.entries(event.payload.memberAssignment).flatMap(([topic, numbers]) => numbers.map(number => [topic, number]))
    say({ assigned: places })
  })
  consumer.on(consumer.events.REBALANCING, () => say({ assigned: [] }))
  await consumer.connect()
  for (const topic of topics) await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({ autoCommitThreshold: 1, eachMessage: async ({ message }) => say({ value: message.value.toString() }) })
  await new Promise(resolve => process.once('SIGTERM', resolve))
  await consumer.disconnect()
}

async function answer (line) {
  const { verb, args } = JSON.parse(line)
  try {
    if (!(verb in verbs)) throw new NotOffered()
    say({ result: await verbs[verb](args) })
  } catch (error) {
    say(error instanceof NotOffered ? { not_offered: true } : { refused: `${error.name}: ${error.message} ${(error.errors || []).map(each => each.message).join(', ')}` })
  }
}

async function serve () {
  for await (const line of readline.createInterface({ input: process.stdin })) await answer(line)
}

(mode === 'member' ? member(JSON.parse(wanted)) : serve()).then(() => process.exit(0), error => {
  if (error instanceof NotOffered) say({ not_offered: true })
  else console.error(error.stack)
  process.exit(error instanceof NotOffered ? 0 : 1)
})
