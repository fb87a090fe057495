// kafkajs, as scripts/conformance asks for it: the verbs are those of franz.go.
'use strict'
const { Kafka, CompressionTypes, logLevel } = require('kafkajs')
const readline = require('readline')

const [bootstrap, verb, topic, ...rest] = process.argv.slice(2)
const kafka = new Kafka({ clientId: 'conformance', brokers: bootstrap.split(','), logLevel: logLevel.NOTHING, retry: { retries: 50, maxRetryTime: 2000 } })
const check = (condition, what) => {
  if (!condition) throw new Error(what)
}

const codecs = { none: CompressionTypes.None, gzip: CompressionTypes.GZIP }

const verbs = {
  async produce (codec, idempotent) {
    if (!(codec in codecs)) process.exit(64) // kafkajs has the others only as plugins of other authors.
    const producer = kafka.producer({ idempotent: idempotent === 'true', maxInFlightRequests: idempotent === 'true' ? 1 : undefined })
    await producer.connect()
    let waiting = []
    let tail = Promise.resolve()
    const flush = () => {
      const messages = waiting
      waiting = []
      if (!messages.length) return
      tail = tail.then(async () => {
        try {
          await producer.send({ topic, messages, acks: -1, compression: codecs[codec] })
          for (const message of messages) console.log(`acked ${message.value}`)
        } catch (error) {
          for (const message of messages) console.log(`failed ${message.value}: ${error}`)
        }
      })
    }
    for await (const line of readline.createInterface({ input: process.stdin })) {
      const [key, value, n] = line.split('\t')
      waiting.push({ key, value, headers: { n } })
      if (waiting.length >= 20) flush()
    }
    flush()
    await tail
    await producer.disconnect()
  },

  async consume (count) {
    const consumer = kafka.consumer({ groupId: `conformance-${topic}-${process.pid}` })
    await consumer.connect()
    await consumer.subscribe({ topic, fromBeginning: true })
    let left = Number(count)
    await new Promise((resolve, reject) => {
      consumer.on(consumer.events.CRASH, event => reject(event.payload.error))
      consumer.run({
        eachMessage: async ({ message }) => {
          console.log(`${message.key}\t${message.value}\t${message.headers.n}`)
          if (--left === 0) resolve()
        }
      })
    })
    await consumer.disconnect()
  },

  async group (name) {
    const consumer = kafka.consumer({ groupId: name })
    consumer.on(consumer.events.GROUP_JOIN, event => console.log(`assigned ${(event.payload.memberAssignment[topic] || []).sort().join(',')}`))
    consumer.on(consumer.events.REBALANCING, () => console.log('assigned '))
    await consumer.connect()
    await consumer.subscribe({ topic, fromBeginning: true })
    consumer.run({
      autoCommitThreshold: 1,
      eachMessage: async ({ message }) => console.log(`record ${message.value}`)
    })
    await new Promise(resolve => process.once('SIGTERM', resolve))
    await consumer.disconnect()
  },

  async offset (timestamp) {
    const admin = kafka.admin()
    await admin.connect()
    const found = await admin.fetchTopicOffsetsByTimestamp(topic, Number(timestamp))
    console.log(found.find(each => each.partition === 0).offset)
    await admin.disconnect()
  },

  async admin () {
    const admin = kafka.admin()
    await admin.connect()
    const made = { topic, numPartitions: 3, replicationFactor: 3, configEntries: [{ name: 'retention.ms', value: '3600000' }] }
    check(await admin.createTopics({ topics: [made], waitForLeaders: true }), 'not created')
    check(!await admin.createTopics({ topics: [made] }), 'created twice')
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    check(topics[0].partitions.length === 3 && topics[0].partitions[0].replicas.length === 3, `described as ${JSON.stringify(topics)}`)
    const configs = await admin.describeConfigs({ resources: [{ type: 2, name: topic, configNames: ['retention.ms'] }], includeSynonyms: false })
    check(configs.resources[0].configEntries[0].configValue === '3600000', JSON.stringify(configs))
    await admin.deleteTopics({ topics: [topic] })
    await admin.disconnect()
  }
}

verbs[verb](...rest).then(() => process.exit(0), error => {
  console.error(error.stack)
  process.exit(1)
})
