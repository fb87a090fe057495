package main

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

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
