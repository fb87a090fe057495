package main

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

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
