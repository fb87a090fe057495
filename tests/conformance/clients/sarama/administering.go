package main

import (
	"errors"
	"sort"
	"strings"

	"github.com/IBM/sarama"
)

func administer(do func(sarama.ClusterAdmin) (any, error)) (any, error) {
	admin, err := sarama.NewClusterAdmin(bootstrap(), settings())
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	return do(admin)
}

func pointers(config map[string]string) map[string]*string {
	all := map[string]*string{}
	for name, value := range config {
		all[name] = &value
	}
	return all
}

func createTopic(a args) (any, error) {
	detail := &sarama.TopicDetail{NumPartitions: int32(a.Count), ReplicationFactor: 3, ConfigEntries: pointers(a.Config)}
	if len(a.Assignment) > 0 {
		detail.NumPartitions, detail.ReplicationFactor, detail.ReplicaAssignment = -1, -1, map[int32][]int32{}
	}
	for number, replicas := range a.Assignment {
		detail.ReplicaAssignment[int32(number)] = replicas
	}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.CreateTopic(a.Topic, detail, a.Validate)
	})
}

func deleteTopic(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) { return nil, admin.DeleteTopic(a.Topic) })
}

func addPartitions(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.CreatePartitions(a.Topic, int32(a.Count), nil, false)
	})
}

func listTopics(args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListTopics()
		names := []string{}
		for name := range found {
			names = append(names, name)
		}
		return names, err
	})
}

func describeTopic(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeTopics([]string{a.Topic})
		if err != nil {
			return nil, err
		}
		parts := found[0].Partitions
		sort.Slice(parts, func(i, j int) bool { return parts[i].ID < parts[j].ID })
		all := []map[string]any{}
		for _, each := range parts {
			all = append(all, map[string]any{"leader": each.Leader, "replicas": each.Replicas, "isr": each.Isr})
		}
		return all, nil
	})
}

var kinds = map[string]sarama.ConfigResourceType{"topic": sarama.TopicResource, "broker": sarama.BrokerResource}

func describeConfig(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeConfig(sarama.ConfigResource{Type: kinds[a.Kind], Name: a.Name})
		all := map[string]string{}
		for _, each := range found {
			all[each.Name] = each.Value
		}
		return all, err
	})
}

func alterConfig(a args) (any, error) {
	entries := map[string]sarama.IncrementalAlterConfigsEntry{}
	for name, value := range a.Changes {
		entry := sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: value}
		if value == nil {
			entry.Operation = sarama.IncrementalAlterConfigsOperationDelete
		}
		entries[name] = entry
	}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.IncrementalAlterConfig(kinds[a.Kind], a.Name, entries, false)
	})
}

func replaceConfig(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.AlterConfig(kinds[a.Kind], a.Name, pointers(a.Config), false)
	})
}

func deleteRecords(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.DeleteRecords(a.Place.Topic, map[int32]int64{a.Place.Partition: a.Before})
	})
}

func listOffsets(a args) (any, error) {
	specs := map[string]int64{"earliest": sarama.OffsetOldest, "latest": sarama.OffsetNewest}
	if specs[a.Spec] == 0 {
		return nil, errNotOffered // Its requests are of an older version than KIP-734.
	}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListOffsets(map[string]map[int32]int64{a.Place.Topic: {a.Place.Partition: specs[a.Spec]}}, nil)
		if err != nil {
			return nil, err
		}
		one := found[a.Place.Topic][a.Place.Partition]
		if !errors.Is(one.Err, sarama.ErrNoError) {
			return nil, one.Err
		}
		return one.Offset, nil
	})
}

func listGroups(args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListConsumerGroups()
		names := []string{}
		for name := range found {
			names = append(names, name)
		}
		return names, err
	})
}

func describeGroup(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeConsumerGroups([]string{a.Group})
		if err != nil {
			return nil, err
		}
		return map[string]any{"state": strings.ToLower(found[0].State), "members": len(found[0].Members)}, nil
	})
}

func deleteGroup(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) { return nil, admin.DeleteConsumerGroup(a.Group) })
}

func groupOffsets(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ListConsumerGroupOffsets(a.Group, nil)
		if err != nil {
			return nil, err
		}
		all := [][]any{}
		for topic, parts := range found.Blocks {
			for partition, block := range parts {
				all = append(all, []any{topic, partition, block.Offset})
			}
		}
		return all, nil
	})
}

func alterOffset(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		offsets := map[string]map[int32]sarama.OffsetAndMetadata{a.Place.Topic: {a.Place.Partition: {Offset: a.Offset, LeaderEpoch: -1}}}
		_, err := admin.AlterConsumerGroupOffsets(a.Group, offsets, nil)
		return nil, err
	})
}

func deleteOffset(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.DeleteConsumerGroupOffset(a.Group, a.Place.Topic, a.Place.Partition)
	})
}

func describeCluster(args) (any, error) {
	client, err := sarama.NewClient(bootstrap(), settings())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	controller, err := client.Controller()
	if err != nil {
		return nil, err
	}
	// The cluster's id is in no answer that sarama hands on but this one.
	answer, err := controller.GetMetadata(&sarama.MetadataRequest{Version: 7})
	if err != nil {
		return nil, err
	}
	ids := []int{}
	for _, each := range client.Brokers() {
		ids = append(ids, int(each.ID()))
	}
	sort.Ints(ids)
	return map[string]any{"id": answer.ClusterID, "controller": controller.ID(), "brokers": ids}, nil
}

const electionNotNeeded = sarama.KError(84)

func electLeader(a args) (any, error) {
	how := map[string]sarama.ElectionType{"preferred": sarama.PreferredElection, "unclean": sarama.UncleanElection}
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.ElectLeaders(how[a.Kind], map[string][]int32{a.Place.Topic: {a.Place.Partition}})
		if err != nil && !errors.Is(err, sarama.ErrNoError) {
			return nil, err
		}
		if one := found[a.Place.Topic][a.Place.Partition]; one != nil && one.ErrorCode != sarama.ErrNoError && one.ErrorCode != electionNotNeeded {
			return nil, one.ErrorCode
		}
		return nil, nil
	})
}

func reassign(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		return nil, admin.AlterPartitionReassignments(a.Place.Topic, [][]int32{a.Replicas})
	})
}

func reassignments(args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		topics, err := admin.ListTopics()
		if err != nil {
			return nil, err
		}
		all := []place{}
		for name, topic := range topics {
			numbers := []int32{}
			for number := int32(0); number < topic.NumPartitions; number++ {
				numbers = append(numbers, number)
			}
			found, err := admin.ListPartitionReassignments(name, numbers)
			if err != nil {
				return nil, err
			}
			for topic, parts := range found {
				for number := range parts {
					all = append(all, place{topic, number})
				}
			}
		}
		return all, nil
	})
}

func logDirs(a args) (any, error) {
	return administer(func(admin sarama.ClusterAdmin) (any, error) {
		found, err := admin.DescribeLogDirs([]int32{a.Broker})
		all := [][]any{}
		for _, directory := range found[a.Broker] {
			for _, topic := range directory.Topics {
				for _, each := range topic.Partitions {
					all = append(all, []any{topic.Topic, each.PartitionID, each.Size})
				}
			}
		}
		return all, err
	})
}
