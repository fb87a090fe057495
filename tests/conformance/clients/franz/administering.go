package main

import (
	"context"
	"errors"
	"sort"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

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
