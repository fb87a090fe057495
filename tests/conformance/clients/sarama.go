// sarama, with its cluster admin.
package main

import (
	"context"
	"errors"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/IBM/sarama"
)

func settings() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.MaxVersion
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Metadata.Retry.Max = 20
	config.ApiVersionsRequest = true
	return config
}

func main() {
	serve(map[string]verb{
		"produce": produce, "read": read, "seek": seek, "pause": pause, "offset_for": offsetFor,
		"commit": commit, "committed": committed,
		"create_topic": createTopic, "delete_topic": deleteTopic, "add_partitions": addPartitions, "list_topics": listTopics,
		"describe_topic": describeTopic, "describe_config": describeConfig, "alter_config": alterConfig, "replace_config": replaceConfig,
		"delete_records": deleteRecords, "list_offsets": listOffsets,
		"list_groups": listGroups, "describe_group": describeGroup, "delete_group": deleteGroup, "group_offsets": groupOffsets,
		"alter_offset": alterOffset, "delete_offset": deleteOffset,
		"describe_cluster": describeCluster, "elect_leader": electLeader, "reassign": reassign, "reassignments": reassignments, "log_dirs": logDirs,
	}, member)
}

// Producing.

func produce(a args) (any, error) {
	codecs := map[string]sarama.CompressionCodec{
		"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
		"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
	}
	acks := map[string]sarama.RequiredAcks{"all": sarama.WaitForAll, "1": sarama.WaitForLocal, "0": sarama.NoResponse}
	config := settings()
	config.Producer.RequiredAcks, config.Producer.Compression = acks[a.Acks], codecs[a.Codec]
	config.Producer.Flush.Frequency = time.Duration(a.LingerMs) * time.Millisecond
	config.Producer.Return.Successes = true
	config.Producer.Retry.Backoff = 100 * time.Millisecond
	config.Producer.Retry.Max = int(a.TimeoutMs / 100)
	config.Producer.Timeout = time.Duration(a.TimeoutMs) * time.Millisecond
	config.Producer.Partitioner = givenOrHashed
	if a.Idempotent {
		config.Producer.Idempotent, config.Net.MaxOpenRequests = true, 1
	}
	producer, err := sarama.NewAsyncProducer(bootstrap(), config)
	if err != nil {
		return nil, err
	}
	problems := make([]*string, len(a.Records))
	succeeded := make(chan bool)
	go func() {
		for range producer.Successes() {
		}
		close(succeeded)
	}()
	failed := make(chan bool)
	go func() {
		for problem := range producer.Errors() {
			why := problem.Err.Error()
			problems[problem.Msg.Metadata.(int)] = &why
		}
		close(failed)
	}()
	for number, each := range a.Records {
		producer.Input() <- message(a.Topic, number, each)
		time.Sleep(time.Duration(a.PauseMs) * time.Millisecond)
	}
	producer.AsyncClose()
	<-succeeded
	<-failed
	return problems, nil
}

func message(topic string, number int, each record) *sarama.ProducerMessage {
	sent := &sarama.ProducerMessage{Topic: topic, Partition: -1, Metadata: number}
	if each.Key != nil {
		sent.Key = sarama.StringEncoder(*each.Key)
	}
	if each.Value != nil {
		sent.Value = sarama.StringEncoder(*each.Value)
	}
	for _, header := range each.Headers {
		sent.Headers = append(sent.Headers, sarama.RecordHeader{Key: []byte(header[0]), Value: []byte(header[1])})
	}
	if each.Partition != nil {
		sent.Partition = *each.Partition
	}
	if each.Timestamp != nil {
		sent.Timestamp = time.UnixMilli(*each.Timestamp)
	}
	return sent
}

type givenOr struct{ sarama.Partitioner }

// givenOrHashed sends a message to the partition that it names, and others by sarama's own hash.
func givenOrHashed(topic string) sarama.Partitioner { return givenOr{sarama.NewHashPartitioner(topic)} }

func (g givenOr) Partition(sent *sarama.ProducerMessage, count int32) (int32, error) {
	if sent.Partition >= 0 {
		return sent.Partition, nil
	}
	return g.Partitioner.Partition(sent, count)
}

// Consuming.

type reader struct {
	consumer   sarama.Consumer
	partitions map[int32]sarama.PartitionConsumer
	messages   chan *sarama.ConsumerMessage
}

func newReader(config *sarama.Config, topic string, partitions []int32, start int64) (*reader, error) {
	consumer, err := sarama.NewConsumer(bootstrap(), config)
	if err != nil {
		return nil, err
	}
	opened := &reader{consumer, map[int32]sarama.PartitionConsumer{}, make(chan *sarama.ConsumerMessage)}
	for _, partition := range partitions {
		if err = opened.open(topic, partition, start); err != nil {
			return nil, errors.Join(err, consumer.Close())
		}
	}
	return opened, nil
}

func (r *reader) open(topic string, partition int32, start int64) error {
	one, err := r.consumer.ConsumePartition(topic, partition, start)
	if err != nil {
		return err
	}
	r.partitions[partition] = one
	go func() {
		for message := range one.Messages() {
			r.messages <- message
		}
	}()
	return nil
}

func (r *reader) take(count int) ([]record, error) {
	found := []record{}
	for len(found) < count {
		select {
		case m := <-r.messages:
			timestamp := m.Timestamp.UnixMilli()
			one := record{Key: text(m.Key), Value: text(m.Value), Partition: &m.Partition, Timestamp: &timestamp, Offset: &m.Offset, Headers: [][2]string{}}
			for _, header := range m.Headers {
				one.Headers = append(one.Headers, [2]string{string(header.Key), string(header.Value)})
			}
			found = append(found, one)
		case <-time.After(60 * time.Second):
			return nil, errors.New("no more records came")
		}
	}
	return found, nil
}

func (r *reader) close() {
	for _, one := range r.partitions {
		one.AsyncClose()
	}
	go func() {
		for range r.messages {
		}
	}()
}

func read(a args) (any, error) {
	config := settings()
	config.RackID = a.Rack
	config.Consumer.MaxWaitTime = time.Duration(a.WaitMs) * time.Millisecond
	config.Net.ReadTimeout = config.Consumer.MaxWaitTime + 30*time.Second
	opened, err := newReader(config, a.Topic, a.Partitions, a.Start)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	return opened.take(a.Count)
}

func seek(a args) (any, error) {
	opened, err := newReader(settings(), a.Topic, []int32{0}, 0)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	found, err := opened.take(a.Count)
	if err != nil {
		return nil, err
	}
	// sarama seeks by opening the partition anew.
	again, err := newReader(settings(), a.Topic, []int32{0}, a.BackTo)
	if err != nil {
		return nil, err
	}
	defer again.close()
	more, err := again.take(1)
	offsets := []int64{}
	for _, each := range append(found, more...) {
		offsets = append(offsets, *each.Offset)
	}
	return offsets, err
}

func pause(a args) (any, error) {
	opened, err := newReader(settings(), a.Topic, nil, 0)
	if err != nil {
		return nil, err
	}
	defer opened.close()
	opened.consumer.Pause(map[string][]int32{a.Topic: {0}})
	for _, partition := range []int32{0, 1} {
		if err = opened.open(a.Topic, partition, 0); err != nil {
			return nil, err
		}
		opened.partitions[0].Pause()
	}
	before, err := opened.take(a.Count)
	if err != nil {
		return nil, err
	}
	opened.partitions[0].Resume()
	after, err := opened.take(a.Count)
	seen := [][]int32{{}, {}}
	for index, found := range [][]record{before, after} {
		for _, each := range found {
			seen[index] = append(seen[index], *each.Partition)
		}
	}
	return seen, err
}

func offsetFor(a args) (any, error) {
	client, err := sarama.NewClient(bootstrap(), settings())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.GetOffset(a.Topic, a.Partition, a.Timestamp)
}

// Groups.

type handler struct{ held *holding }

func (h handler) Setup(session sarama.ConsumerGroupSession) error {
	h.held.change(session.Claims(), true)
	return nil
}

func (h handler) Cleanup(session sarama.ConsumerGroupSession) error {
	h.held.change(session.Claims(), false)
	return nil
}

func (h handler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		say("value", string(message.Value))
		session.MarkMessage(message, "")
	}
	return nil
}

func member(a args) error {
	strategies := map[string]sarama.BalanceStrategy{
		"range": sarama.NewBalanceStrategyRange(), "roundrobin": sarama.NewBalanceStrategyRoundRobin(), "sticky": sarama.NewBalanceStrategySticky(),
	}
	config := settings()
	if len(a.Strategies) > 0 {
		config.Consumer.Group.Rebalance.GroupStrategies = nil
	}
	for _, strategy := range a.Strategies {
		if strategies[strategy] == nil {
			return errNotOffered
		}
		config.Consumer.Group.Rebalance.GroupStrategies = append(config.Consumer.Group.Rebalance.GroupStrategies, strategies[strategy])
	}
	if a.Protocol == "consumer" || strings.HasPrefix(a.Topics[0], "^") {
		return errNotOffered
	}
	config.Consumer.Group.InstanceId = a.Instance
	config.Consumer.Group.Session.Timeout, config.Consumer.Group.Heartbeat.Interval = 8*time.Second, 300*time.Millisecond
	config.Consumer.Offsets.AutoCommit.Interval = 200 * time.Millisecond
	config.Consumer.Group.Rebalance.Retry.Max, config.Metadata.RefreshFrequency = 20, time.Second
	opened, err := sarama.NewConsumerGroup(bootstrap(), a.Group, config)
	if err != nil {
		return err
	}
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	held := &holding{}
	for ended.Err() == nil {
		if err = opened.Consume(ended, a.Topics, handler{held}); err != nil {
			time.Sleep(100 * time.Millisecond) // As sarama's documentation has it: whoever runs a member calls Consume again.
		}
	}
	return opened.Close()
}

func commit(a args) (any, error) {
	return managed(a, func(manager sarama.OffsetManager, one sarama.PartitionOffsetManager) (any, error) {
		one.MarkOffset(a.Offset, a.Metadata)
		manager.Commit()
		return nil, nil
	})
}

func committed(a args) (any, error) {
	return managed(a, func(_ sarama.OffsetManager, one sarama.PartitionOffsetManager) (any, error) {
		offset, metadata := one.NextOffset()
		return []any{offset, metadata}, nil
	})
}

func managed(a args, do func(sarama.OffsetManager, sarama.PartitionOffsetManager) (any, error)) (any, error) {
	client, err := sarama.NewClient(bootstrap(), settings())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	manager, err := sarama.NewOffsetManagerFromClient(a.Group, client)
	if err != nil {
		return nil, err
	}
	defer manager.Close()
	one, err := manager.ManagePartition(a.Place.Topic, a.Place.Partition)
	if err != nil {
		return nil, err
	}
	defer one.AsyncClose()
	return do(manager, one)
}

// Administering.

func administer(do func(sarama.ClusterAdmin) (any, error)) (any, error) {
	admin, err := sarama.NewClusterAdmin(bootstrap(), settings())
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	return do(admin)
}

func pointers(config map[string]string) map[string]*string {
	all := map[string]*string{}
	for name, value := range config {
		all[name] = &value
	}
	return all
}

func createTopic(a args) (any, error) {
	detail := &sarama.TopicDetail{NumPartitions: int32(a.Count), ReplicationFactor: 3, ConfigEntries: pointers(a.Config)}
	if len(a.Assignment) > 0 {
		detail.NumPartitions, detail.ReplicationFactor, detail.ReplicaAssignment = -1, -1, map[int32][]int32{}
	}
	for number, replicas := range a.Assignment {
		detail.ReplicaAssignment[int32(number)] = replicas
	}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.CreateTopic(a.Topic, detail, a.Validate)
	})
}

func deleteTopic(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) { return nil, admin.DeleteTopic(a.Topic) })
}

func addPartitions(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.CreatePartitions(a.Topic, int32(a.Count), nil, false)
	})
}

func listTopics(args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListTopics()
		names := []string{}
		for name := range found {
			names = append(names, name)
		}
		return names, err
	})
}

func describeTopic(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeTopics([]string{a.Topic})
		if err != nil {
			return nil, err
		}
		parts := found[0].Partitions
		sort.Slice(parts, func(i, j int) bool { return parts[i].ID < parts[j].ID })
		all := []map[string]any{}
		for _, each := range parts {
			all = append(all, map[string]any{"leader": each.Leader, "replicas": each.Replicas, "isr": each.Isr})
		}
		return all, nil
	})
}

var kinds = map[string]sarama.ConfigResourceType{"topic": sarama.TopicResource, "broker": sarama.BrokerResource}

func describeConfig(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeConfig(sarama.ConfigResource{Type: kinds[a.Kind], Name: a.Name})
		all := map[string]string{}
		for _, each := range found {
			all[each.Name] = each.Value
		}
		return all, err
	})
}

func alterConfig(a args) (any, error) {
	entries := map[string]sarama.IncrementalAlterConfigsEntry{}
	for name, value := range a.Changes {
		entry := sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: value}
		if value == nil {
			entry.Operation = sarama.IncrementalAlterConfigsOperationDelete
		}
		entries[name] = entry
	}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.IncrementalAlterConfig(kinds[a.Kind], a.Name, entries, false)
	})
}

func replaceConfig(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.AlterConfig(kinds[a.Kind], a.Name, pointers(a.Config), false)
	})
}

func deleteRecords(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.DeleteRecords(a.Place.Topic, map[int32]int64{a.Place.Partition: a.Before})
	})
}

func listOffsets(a args) (any, error) {
	specs := map[string]int64{"earliest": sarama.OffsetOldest, "latest": sarama.OffsetNewest}
	if specs[a.Spec] == 0 {
		return nil, errNotOffered // Its requests are of an older version than KIP-734.
	}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListOffsets(map[string]map[int32]int64{a.Place.Topic: {a.Place.Partition: specs[a.Spec]}}, nil)
		if err != nil {
			return nil, err
		}
		one := found[a.Place.Topic][a.Place.Partition]
		if !errors.Is(one.Err, sarama.ErrNoError) {
			return nil, one.Err
		}
		return one.Offset, nil
	})
}

func listGroups(args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListConsumerGroups()
		names := []string{}
		for name := range found {
			names = append(names, name)
		}
		return names, err
	})
}

func describeGroup(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeConsumerGroups([]string{a.Group})
		if err != nil {
			return nil, err
		}
		return map[string]any{"state": strings.ToLower(found[0].State), "members": len(found[0].Members)}, nil
	})
}

func deleteGroup(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) { return nil, admin.DeleteConsumerGroup(a.Group) })
}

func groupOffsets(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListConsumerGroupOffsets(a.Group, nil)
		if err != nil {
			return nil, err
		}
		all := [][]any{}
		for topic, parts := range found.Blocks {
			for partition, block := range parts {
				all = append(all, []any{topic, partition, block.Offset})
			}
		}
		return all, nil
	})
}

func alterOffset(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		offsets := map[string]map[int32]sarama.OffsetAndMetadata{a.Place.Topic: {a.Place.Partition: {Offset: a.Offset, LeaderEpoch: -1}}}
		_, err := admin.AlterConsumerGroupOffsets(a.Group, offsets, nil)
		return nil, err
	})
}

func deleteOffset(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.DeleteConsumerGroupOffset(a.Group, a.Place.Topic, a.Place.Partition)
	})
}

func describeCluster(args) (any, error) {
	client, err := sarama.NewClient(bootstrap(), settings())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	controller, err := client.Controller()
	if err != nil {
		return nil, err
	}
	// The cluster's id is in no answer that sarama hands on but this one.
	answer, err := controller.GetMetadata(&sarama.MetadataRequest{Version: 7})
	if err != nil {
		return nil, err
	}
	ids := []int{}
	for _, each := range client.Brokers() {
		ids = append(ids, int(each.ID()))
	}
	sort.Ints(ids)
	return map[string]any{"id": answer.ClusterID, "controller": controller.ID(), "brokers": ids}, nil
}

const electionNotNeeded = sarama.KError(84)

func electLeader(a args) (any, error) {
	how := map[string]sarama.ElectionType{"preferred": sarama.PreferredElection, "unclean": sarama.UncleanElection}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ElectLeaders(how[a.Kind], map[string][]int32{a.Place.Topic: {a.Place.Partition}})
		if err != nil && !errors.Is(err, sarama.ErrNoError) {
			return nil, err
		}
		if one := found[a.Place.Topic][a.Place.Partition]; one != nil && one.ErrorCode != sarama.ErrNoError && one.ErrorCode != electionNotNeeded {
			return nil, one.ErrorCode
		}
		return nil, nil
	})
}

func reassign(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.AlterPartitionReassignments(a.Place.Topic, [][]int32{a.Replicas})
	})
}

func reassignments(args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		topics, err := admin.ListTopics()
		if err != nil {
			return nil, err
		}
		all := []place{}
		for name, topic := range topics {
			numbers := []int32{}
			for number := int32(0); number < topic.NumPartitions; number++ {
				numbers = append(numbers, number)
			}
			found, err := admin.ListPartitionReassignments(name, numbers)
			if err != nil {
				return nil, err
			}
			for topic, parts := range found {
				for number := range parts {
					all = append(all, place{topic, number})
				}
			}
		}
		return all, nil
	})
}

func logDirs(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeLogDirs([]int32{a.Broker})
		all := [][]any{}
		for _, directory := range found[a.Broker] {
			for _, topic := range directory.Topics {
				for _, each := range topic.Partitions {
					all = append(all, []any{topic.Topic, each.PartitionID, each.Size})
				}
			}
		}
		return all, err
	})
}
