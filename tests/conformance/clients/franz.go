// franz-go, as scripts/conformance asks for it: PROGRAM BOOTSTRAP VERB TOPIC [ARGUMENT...].
//
//	produce COMPRESSION IDEMPOTENT   key TAB value TAB header per line of stdin; prints "acked VALUE" or "failed VALUE: WHY"
//	consume COUNT                    from the beginning; prints key TAB value TAB header
//	group GROUP                      prints "assigned P,P" (all that it has) and "record VALUE"; commits; ends with SIGTERM
//	offset TIMESTAMP                 of partition 0; prints it
//	admin                            creates, describes and deletes the topic
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func client(options ...kgo.Opt) *kgo.Client {
	opened, err := kgo.NewClient(append(options, kgo.SeedBrokers(strings.Split(os.Args[1], ",")...))...)
	must(err)
	return opened
}

func main() {
	topic := os.Args[3]
	switch os.Args[2] {
	case "produce":
		produce(topic, os.Args[4], os.Args[5] == "true")
	case "consume":
		count, err := strconv.Atoi(os.Args[4])
		must(err)
		consume(topic, count)
	case "group":
		group(topic, os.Args[4])
	case "offset":
		timestamp, err := strconv.ParseInt(os.Args[4], 10, 64)
		must(err)
		offset(topic, timestamp)
	case "admin":
		admin(topic)
	}
}

func produce(topic, codec string, idempotent bool) {
	options := []kgo.Opt{kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerBatchCompression(codecs[codec]), kgo.RecordDeliveryTimeout(60 * time.Second)}
	if !idempotent {
		options = append(options, kgo.DisableIdempotentWrite())
	}
	producer := client(options...)
	var lock sync.Mutex
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		part := strings.Split(lines.Text(), "\t")
		record := &kgo.Record{Topic: topic, Key: []byte(part[0]), Value: []byte(part[1]), Headers: []kgo.RecordHeader{{Key: "n", Value: []byte(part[2])}}}
		producer.Produce(context.Background(), record, func(record *kgo.Record, err error) {
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				fmt.Printf("failed %s: %v\n", record.Value, err)
			} else {
				fmt.Printf("acked %s\n", record.Value)
			}
		})
	}
	must(producer.Flush(context.Background()))
	producer.Close()
}

func consume(topic string, count int) {
	consumer := client(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer consumer.Close()
	for seen := 0; seen < count; {
		fetches := consumer.PollFetches(context.Background())
		for _, problem := range fetches.Errors() {
			must(problem.Err)
		}
		fetches.EachRecord(func(record *kgo.Record) {
			fmt.Printf("%s\t%s\t%s\n", record.Key, record.Value, record.Headers[0].Value)
			seen++
		})
	}
}

func group(topic, name string) {
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var lock sync.Mutex
	mine := map[int32]bool{}
	show := func() {
		var numbers []int
		for number := range mine {
			numbers = append(numbers, int(number))
		}
		sort.Ints(numbers)
		fmt.Printf("assigned %s\n", strings.Trim(strings.ReplaceAll(fmt.Sprint(numbers), " ", ","), "[]"))
	}
	change := func(has bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, changed map[string][]int32) {
			lock.Lock()
			defer lock.Unlock()
			for _, number := range changed[topic] {
				if has {
					mine[number] = true
				} else {
					delete(mine, number)
				}
			}
			show()
		}
	}
	consumer := client(kgo.ConsumeTopics(topic), kgo.ConsumerGroup(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(change(true)), kgo.OnPartitionsRevoked(change(false)), kgo.OnPartitionsLost(change(false)), kgo.BlockRebalanceOnPoll())
	for ended.Err() == nil {
		fetches := consumer.PollFetches(ended)
		fetches.EachRecord(func(record *kgo.Record) { fmt.Printf("record %s\n", record.Value) })
		if !fetches.Empty() {
			must(consumer.CommitUncommittedOffsets(context.Background()))
		}
		consumer.AllowRebalance()
	}
	consumer.Close()
}

func offset(topic string, timestamp int64) {
	opened := client()
	defer opened.Close()
	listed, err := kadm.NewClient(opened).ListOffsetsAfterMilli(context.Background(), timestamp, topic)
	must(err)
	found, _ := listed.Lookup(topic, 0)
	must(found.Err)
	fmt.Println(found.Offset)
}

func admin(topic string) {
	opened := client()
	defer opened.Close()
	administrator, ctx := kadm.NewClient(opened), context.Background()
	made, err := administrator.CreateTopic(ctx, 3, 3, map[string]*string{"retention.ms": kadm.StringPtr("3600000")}, topic)
	must(err)
	must(made.Err)
	again, err := administrator.CreateTopic(ctx, 3, 3, nil, topic)
	if err == nil || again.Err == nil {
		must(fmt.Errorf("the topic was created twice"))
	}
	topics, err := administrator.ListTopics(ctx, topic)
	must(err)
	if len(topics[topic].Partitions) != 3 || len(topics[topic].Partitions[0].Replicas) != 3 {
		must(fmt.Errorf("described as %v", topics[topic]))
	}
	configs, err := administrator.DescribeTopicConfigs(ctx, topic)
	must(err)
	for _, config := range configs[0].Configs {
		if config.Key == "retention.ms" && config.MaybeValue() != "3600000" {
			must(fmt.Errorf("retention.ms=%s", config.MaybeValue()))
		}
	}
	deleted, err := administrator.DeleteTopic(ctx, topic)
	must(err)
	must(deleted.Err)
}
