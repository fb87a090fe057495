package main

import (
	"context"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/IBM/sarama"
)

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
	config.Consumer.Group.Session.Timeout, config.Consumer.Group.Heartbeat.Interval = time.Duration(a.SessionMs)*time.Millisecond, 300*time.Millisecond
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
