// franz-go, with its admin client kadm.
package main

import (
	"context"
	"errors"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var ctx = context.Background()

func client(options ...kgo.Opt) *kgo.Client {
	opened, err := kgo.NewClient(append(options, kgo.SeedBrokers(bootstrap()...))...)
	must(err)
	return opened
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
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	acks := map[string]kgo.Acks{"all": kgo.AllISRAcks(), "1": kgo.LeaderAck(), "0": kgo.NoAck()}
	options := []kgo.Opt{
		kgo.RequiredAcks(acks[a.Acks]), kgo.ProducerBatchCompression(codecs[a.Codec]), kgo.ProducerLinger(time.Duration(a.LingerMs) * time.Millisecond),
		kgo.RecordPartitioner(givenOr{kgo.StickyKeyPartitioner(nil)}),
	}
	if a.Records[0].Timestamp == nil { // The time-out counts from the record's timestamp.
		options = append(options, kgo.RecordDeliveryTimeout(time.Duration(a.TimeoutMs)*time.Millisecond))
	}
	if !a.Idempotent {
		options = append(options, kgo.DisableIdempotentWrite())
	}
	producer := client(options...)
	defer producer.Close()
	problems := make([]*string, len(a.Records))
	for number, each := range a.Records {
		sent := &kgo.Record{Topic: a.Topic, Key: bytesOf(each.Key), Value: bytesOf(each.Value), Partition: -1}
		for _, header := range each.Headers {
			sent.Headers = append(sent.Headers, kgo.RecordHeader{Key: header[0], Value: []byte(header[1])})
		}
		if each.Partition != nil {
			sent.Partition = *each.Partition
		}
		if each.Timestamp != nil {
			sent.Timestamp = time.UnixMilli(*each.Timestamp)
		}
		producer.Produce(ctx, sent, func(_ *kgo.Record, err error) {
			if err != nil {
				why := err.Error()
				problems[number] = &why
			}
		})
		time.Sleep(time.Duration(a.PauseMs) * time.Millisecond)
	}
	return problems, producer.Flush(ctx)
}

// givenOr sends a record to the partition that it names, and others as its partitioner says.
type givenOr struct{ kgo.Partitioner }

func (g givenOr) ForTopic(topic string) kgo.TopicPartitioner {
	return givenOrTopic{g.Partitioner.ForTopic(topic)}
}

type givenOrTopic struct{ kgo.TopicPartitioner }

func (g givenOrTopic) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition >= 0 || g.TopicPartitioner.RequiresConsistency(r)
}

func (g givenOrTopic) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		return int(r.Partition)
	}
	return g.TopicPartitioner.Partition(r, n)
}

// Consuming.

func from(topic string, partitions []int32, start int64) kgo.Opt {
	offset := kgo.NewOffset().At(start)
	if start == -2 {
		offset = kgo.NewOffset().AtStart()
	}
	places := map[int32]kgo.Offset{}
	for _, partition := range partitions {
		places[partition] = offset
	}
	return kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: places})
}

func take(consumer *kgo.Client, count int) ([]record, error) {
	limited, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	found := []record{}
	for len(found) < count {
		fetches := consumer.PollRecords(limited, count-len(found))
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			timestamp := r.Timestamp.UnixMilli()
			one := record{Key: text(r.Key), Value: text(r.Value), Partition: &r.Partition, Timestamp: &timestamp, Offset: &r.Offset, Headers: [][2]string{}}
			for _, header := range r.Headers {
				one.Headers = append(one.Headers, [2]string{header.Key, string(header.Value)})
			}
			found = append(found, one)
		})
	}
	return found, nil
}

func read(a args) (any, error) {
	consumer := client(from(a.Topic, a.Partitions, a.Start), kgo.Rack(a.Rack), kgo.FetchMaxWait(time.Duration(a.WaitMs)*time.Millisecond))
	defer consumer.Close()
	return take(consumer, a.Count)
}

func seek(a args) (any, error) {
	consumer := client(from(a.Topic, []int32{0}, 0))
	defer consumer.Close()
	found, err := take(consumer, a.Count)
	if err != nil {
		return nil, err
	}
	consumer.SetOffsets(map[string]map[int32]kgo.EpochOffset{a.Topic: {0: {Epoch: -1, Offset: a.BackTo}}})
	again, err := take(consumer, 1)
	offsets := []int64{}
	for _, each := range append(found, again...) {
		offsets = append(offsets, *each.Offset)
	}
	return offsets, err
}

func pause(a args) (any, error) {
	consumer := client(from(a.Topic, []int32{0, 1}, 0))
	defer consumer.Close()
	consumer.PauseFetchPartitions(map[string][]int32{a.Topic: {0}})
	before, err := take(consumer, a.Count)
	if err != nil {
		return nil, err
	}
	consumer.ResumeFetchPartitions(map[string][]int32{a.Topic: {0}})
	after, err := take(consumer, a.Count)
	seen := [][]int32{{}, {}}
	for index, found := range [][]record{before, after} {
		for _, each := range found {
			seen[index] = append(seen[index], *each.Partition)
		}
	}
	return seen, err
}

func offsetFor(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		listed, err := admin.ListOffsetsAfterMilli(ctx, a.Timestamp, a.Topic)
		return listedOffset(listed, place{a.Topic, a.Partition}, err)
	})
}

func listedOffset(listed kadm.ListedOffsets, where place, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	found, _ := listed.Lookup(where.Topic, where.Partition)
	return found.Offset, found.Err
}

// Groups.

func member(a args) error {
	held := holding{}
	told := func(has bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, changed map[string][]int32) { held.change(changed, has) }
	}
	balancers := map[string]kgo.GroupBalancer{
		"range": kgo.RangeBalancer(), "roundrobin": kgo.RoundRobinBalancer(), "sticky": kgo.StickyBalancer(), "cooperative-sticky": kgo.CooperativeStickyBalancer(),
	}
	if len(a.Strategies) == 0 {
		a.Strategies = []string{"range"}
	}
	var chosen []kgo.GroupBalancer
	for _, strategy := range a.Strategies {
		chosen = append(chosen, balancers[strategy])
	}
	options := []kgo.Opt{
		kgo.ConsumeTopics(a.Topics...), kgo.ConsumerGroup(a.Group), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(told(true)), kgo.OnPartitionsRevoked(told(false)), kgo.OnPartitionsLost(told(false)), kgo.BlockRebalanceOnPoll(),
		kgo.MetadataMaxAge(time.Second), kgo.MetadataMinAge(100 * time.Millisecond),
	}
	if a.Protocol == "consumer" {
		options = append(options, kgo.ServerSideBalancer())
	} else {
		options = append(options, kgo.Balancers(chosen...), kgo.SessionTimeout(8*time.Second), kgo.HeartbeatInterval(300*time.Millisecond))
	}
	if strings.HasPrefix(a.Topics[0], "^") {
		options = append(options, kgo.ConsumeRegex())
	}
	if a.Instance != "" {
		options = append(options, kgo.InstanceID(a.Instance))
	}
	ended, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	consumer := client(options...)
	for ended.Err() == nil {
		fetches := consumer.PollFetches(ended)
		fetches.EachRecord(func(r *kgo.Record) { say("value", string(r.Value)) })
		if !fetches.Empty() {
			consumer.CommitUncommittedOffsets(ctx) // A rebalance may come first: what is not committed is read again.
		}
		consumer.AllowRebalance()
	}
	consumer.CloseAllowingRebalance()
	return nil
}

func commit(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		offsets := kadm.Offsets{}
		offsets.Add(kadm.Offset{Topic: a.Place.Topic, Partition: a.Place.Partition, At: a.Offset, LeaderEpoch: -1, Metadata: a.Metadata})
		return nil, admin.CommitAllOffsets(ctx, a.Group, offsets)
	})
}

func committed(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.FetchOffsets(ctx, a.Group)
		if err != nil {
			return nil, err
		}
		one, _ := found.Lookup(a.Place.Topic, a.Place.Partition)
		return []any{one.At, one.Metadata}, one.Err
	})
}

// Administering.

func administer(do func(*kadm.Client) (any, error)) (any, error) {
	opened := client(kgo.UnknownTopicRetries(0))
	defer opened.Close()
	return do(kadm.NewClient(opened))
}

func withMessage(err error, message string) error {
	if err != nil && message != "" {
		return errors.Join(err, errors.New(message))
	}
	return err
}

func createTopic(a args) (any, error) {
	opened := client()
	defer opened.Close()
	// kadm has no way to name the replicas; kmsg has.
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = a.Topic, int32(a.Count), 3
	if len(a.Assignment) > 0 {
		topic.NumPartitions, topic.ReplicationFactor = -1, -1
	}
	for number, replicas := range a.Assignment {
		topic.ReplicaAssignment = append(topic.ReplicaAssignment, kmsg.CreateTopicsRequestTopicReplicaAssignment{Partition: int32(number), Replicas: replicas})
	}
	for name, value := range a.Config {
		topic.Configs = append(topic.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: name, Value: &value})
	}
	request := kmsg.NewPtrCreateTopicsRequest()
	request.Topics, request.ValidateOnly, request.TimeoutMillis = []kmsg.CreateTopicsRequestTopic{topic}, a.Validate, 10_000
	answer, err := request.RequestWith(ctx, opened)
	if err != nil {
		return nil, err
	}
	made := answer.Topics[0]
	message := ""
	if made.ErrorMessage != nil {
		message = *made.ErrorMessage
	}
	return nil, withMessage(kerr.ErrorForCode(made.ErrorCode), message)
}

func deleteTopic(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		deleted, err := admin.DeleteTopic(ctx, a.Topic)
		return nil, errors.Join(err, deleted.Err)
	})
}

func addPartitions(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		added, err := admin.UpdatePartitions(ctx, a.Count, a.Topic)
		return nil, errors.Join(err, added.Error())
	})
}

func listTopics(args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.ListTopics(ctx)
		return found.Names(), err
	})
}

func describeTopic(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.ListTopics(ctx, a.Topic)
		parts := []map[string]any{}
		for _, each := range found[a.Topic].Partitions.Sorted() {
			parts = append(parts, map[string]any{"leader": each.Leader, "replicas": each.Replicas, "isr": each.ISR})
		}
		return parts, err
	})
}

func broker(name string) int32 {
	id, err := strconv.Atoi(name)
	must(err)
	return int32(id)
}

func describeConfig(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		var found kadm.ResourceConfigs
		var err error
		if a.Kind == "topic" {
			found, err = admin.DescribeTopicConfigs(ctx, a.Name)
		} else {
			found, err = admin.DescribeBrokerConfigs(ctx, broker(a.Name))
		}
		if err != nil {
			return nil, err
		}
		all := map[string]*string{}
		for _, each := range found[0].Configs {
			all[each.Key] = each.Value
		}
		return all, found[0].Err
	})
}

func alterConfig(a args) (any, error) {
	var changes []kadm.AlterConfig
	for name, value := range a.Changes {
		change := kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: value}
		if value == nil {
			change.Op = kadm.DeleteConfig
		}
		changes = append(changes, change)
	}
	return altered(a, func(admin *kadm.Client) (kadm.AlterConfigsResponses, error) {
		if a.Kind == "topic" {
			return admin.AlterTopicConfigs(ctx, changes, a.Name)
		}
		return admin.AlterBrokerConfigs(ctx, changes, broker(a.Name))
	})
}

func replaceConfig(a args) (any, error) {
	var state []kadm.AlterConfig
	for name, value := range a.Config {
		state = append(state, kadm.AlterConfig{Name: name, Value: &value})
	}
	return altered(a, func(admin *kadm.Client) (kadm.AlterConfigsResponses, error) {
		return admin.AlterTopicConfigsState(ctx, state, a.Name)
	})
}

func altered(a args, do func(*kadm.Client) (kadm.AlterConfigsResponses, error)) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		answers, err := do(admin)
		if err != nil {
			return nil, err
		}
		return nil, withMessage(answers[0].Err, answers[0].ErrMessage)
	})
}

func deleteRecords(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		offsets := kadm.Offsets{}
		offsets.AddOffset(a.Place.Topic, a.Place.Partition, a.Before, -1)
		deleted, err := admin.DeleteRecords(ctx, offsets)
		return nil, errors.Join(err, deleted.Error())
	})
}

func listOffsets(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		list := map[string]func(context.Context, ...string) (kadm.ListedOffsets, error){
			"earliest": admin.ListStartOffsets, "latest": admin.ListEndOffsets, "max-timestamp": admin.ListMaxTimestampOffsets,
		}
		listed, err := list[a.Spec](ctx, a.Place.Topic)
		return listedOffset(listed, a.Place, err)
	})
}

func listGroups(args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.ListGroups(ctx)
		return found.Groups(), err
	})
}

func describeGroup(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.DescribeGroups(ctx, a.Group)
		one := found[a.Group]
		return map[string]any{"state": strings.ToLower(one.State), "members": len(one.Members)}, errors.Join(err, one.Err)
	})
}

func deleteGroup(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		deleted, err := admin.DeleteGroup(ctx, a.Group)
		return nil, errors.Join(err, deleted.Err)
	})
}

func groupOffsets(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.FetchOffsets(ctx, a.Group)
		all := [][]any{}
		found.Each(func(each kadm.OffsetResponse) { all = append(all, []any{each.Topic, each.Partition, each.At}) })
		return all, err
	})
}

func alterOffset(a args) (any, error) { return commit(a) }

func deleteOffset(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		places := kadm.TopicsSet{}
		places.Add(a.Place.Topic, a.Place.Partition)
		deleted, err := admin.DeleteOffsets(ctx, a.Group, places)
		return nil, errors.Join(err, deleted.Error())
	})
}

func describeCluster(args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.BrokerMetadata(ctx)
		ids := found.Brokers.NodeIDs()
		sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
		return map[string]any{"id": found.Cluster, "controller": found.Controller, "brokers": ids}, err
	})
}

func electLeader(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		places := kadm.TopicsSet{}
		places.Add(a.Place.Topic, a.Place.Partition)
		how := map[string]kadm.ElectLeadersHow{"preferred": kadm.ElectPreferredReplica, "unclean": kadm.ElectLiveReplica}
		elected, err := admin.ElectLeaders(ctx, how[a.Kind], places)
		if one := elected[a.Place.Topic][a.Place.Partition]; one.Err != nil && !errors.Is(one.Err, kerr.ElectionNotNeeded) {
			return nil, withMessage(one.Err, one.ErrMessage)
		}
		return nil, err
	})
}

func reassign(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		request := kadm.AlterPartitionAssignmentsReq{}
		request.Assign(a.Place.Topic, a.Place.Partition, a.Replicas)
		begun, err := admin.AlterPartitionAssignments(ctx, request)
		return nil, errors.Join(err, begun.Error())
	})
}

func reassignments(args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.ListPartitionReassignments(ctx, nil)
		all := []place{}
		found.Each(func(each kadm.ListPartitionReassignmentsResponse) {
			all = append(all, place{each.Topic, each.Partition})
		})
		return all, err
	})
}

func logDirs(a args) (any, error) {
	return administer(func(admin *kadm.Client) (any, error) {
		found, err := admin.DescribeBrokerLogDirs(ctx, a.Broker, nil)
		all := [][]any{}
		found.EachPartition(func(each kadm.DescribedLogDirPartition) {
			all = append(all, []any{each.Topic, each.Partition, each.Size})
		})
		return all, errors.Join(err, found.Error())
	})
}
