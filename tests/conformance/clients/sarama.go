// sarama, as scripts/conformance asks for it: the verbs are those of franz.go.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/IBM/sarama"
)

var codecs = map[string]sarama.CompressionCodec{
	"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
	"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func settings() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.MaxVersion
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Metadata.Retry.Max = 20
	return config
}

func bootstrap() []string { return strings.Split(os.Args[1], ",") }

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
		client, err := sarama.NewClient(bootstrap(), settings())
		must(err)
		found, err := client.GetOffset(topic, 0, timestamp)
		must(err)
		fmt.Println(found)
	case "admin":
		admin(topic)
	}
}

func produce(topic, codec string, idempotent bool) {
	config := settings()
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Compression = codecs[codec]
	config.Producer.Return.Successes = true
	config.Producer.Retry.Max = 200
	config.Producer.Retry.Backoff = 100 * time.Millisecond
	if idempotent {
		config.Producer.Idempotent = true
		config.Net.MaxOpenRequests = 1
	}
	producer, err := sarama.NewAsyncProducer(bootstrap(), config)
	must(err)
	done := make(chan bool)
	text := func(message *sarama.ProducerMessage) string {
		value, _ := message.Value.Encode()
		return string(value)
	}
	go func() {
		for message := range producer.Successes() {
			fmt.Printf("acked %s\n", text(message))
		}
		done <- true
	}()
	go func() {
		for problem := range producer.Errors() {
			fmt.Printf("failed %s: %v\n", text(problem.Msg), problem.Err)
		}
		done <- true
	}()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		part := strings.Split(lines.Text(), "\t")
		producer.Input() <- &sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(part[0]), Value: sarama.StringEncoder(part[1]),
			Headers: []sarama.RecordHeader{{Key: []byte("n"), Value: []byte(part[2])}}}
	}
	producer.AsyncClose()
	<-done
	<-done
}

func consume(topic string, count int) {
	consumer, err := sarama.NewConsumer(bootstrap(), settings())
	must(err)
	partitions, err := consumer.Partitions(topic)
	must(err)
	all := make(chan *sarama.ConsumerMessage)
	for _, partition := range partitions {
		one, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		must(err)
		go func() {
			for message := range one.Messages() {
				all <- message
			}
		}()
	}
	for seen := 0; seen < count; seen++ {
		message := <-all
		fmt.Printf("%s\t%s\t%s\n", message.Key, message.Value, message.Headers[0].Value)
	}
}

type member struct{}

func (member) Setup(session sarama.ConsumerGroupSession) error {
	for _, claims := range session.Claims() {
		sort.Slice(claims, func(i, j int) bool { return claims[i] < claims[j] })
		fmt.Printf("assigned %s\n", strings.Trim(strings.ReplaceAll(fmt.Sprint(claims), " ", ","), "[]"))
	}
	return nil
}

func (member) Cleanup(sarama.ConsumerGroupSession) error {
	fmt.Println("assigned ")
	return nil
}

func (member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		fmt.Printf("record %s\n", message.Value)
		session.MarkMessage(message, "")
	}
	return nil
}

func group(topic, name string) {
	config := settings()
	config.Consumer.Offsets.AutoCommit.Interval = 200 * time.Millisecond
	opened, err := sarama.NewConsumerGroup(bootstrap(), name, config)
	must(err)
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for ended.Err() == nil {
		must(opened.Consume(ended, []string{topic}, member{}))
	}
	must(opened.Close())
}

func admin(topic string) {
	administrator, err := sarama.NewClusterAdmin(bootstrap(), settings())
	must(err)
	retention := "3600000"
	detail := &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 3, ConfigEntries: map[string]*string{"retention.ms": &retention}}
	must(administrator.CreateTopic(topic, detail, false))
	if err = administrator.CreateTopic(topic, detail, false); !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		must(fmt.Errorf("creating it twice: %v", err))
	}
	described, err := administrator.DescribeTopics([]string{topic})
	must(err)
	if len(described[0].Partitions) != 3 || len(described[0].Partitions[0].Replicas) != 3 {
		must(fmt.Errorf("described as %v", described[0]))
	}
	configs, err := administrator.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{"retention.ms"}})
	must(err)
	if len(configs) != 1 || configs[0].Value != retention {
		must(fmt.Errorf("configs %v", configs))
	}
	must(administrator.DeleteTopic(topic))
	must(administrator.Close())
}
