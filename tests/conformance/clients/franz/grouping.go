package main

import (
	"context"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

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
		options = append(options, kgo.Balancers(chosen...), kgo.SessionTimeout(time.Duration(a.SessionMs)*time.Millisecond), kgo.HeartbeatInterval(300*time.Millisecond))
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
