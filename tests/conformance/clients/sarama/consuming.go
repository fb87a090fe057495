package main

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
)

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
