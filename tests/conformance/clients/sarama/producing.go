package main

import (
	"time"

	"github.com/IBM/sarama"
)

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
