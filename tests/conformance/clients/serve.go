// What the programs in franz and sarama share: a program of verbs, as tests/conformance/matrix/programs.py asks for them.
//
// PROGRAM BOOTSTRAP reads a line {"verb": ..., "args": {...}} and answers with a line {"result": ...}, {"refused": "why"} or
// {"not_offered": true}. PROGRAM BOOTSTRAP member ARGS is a group's member until SIGTERM; it prints {"assigned": [[topic, partition]...]}
// (all that it has) and {"value": ...}. Each defines its verbs and its member; client.py says what the verbs and their arguments mean.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
)

type record struct {
	Key       *string     `json:"key"`
	Value     *string     `json:"value"`
	Headers   [][2]string `json:"headers"`
	Partition *int32      `json:"partition"`
	Timestamp *int64      `json:"timestamp_ms"`
	Offset    *int64      `json:"offset"`
}

type place struct {
	Topic     string
	Partition int32
}

func (p *place) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&p.Topic, &p.Partition})
}

func (p place) MarshalJSON() ([]byte, error) { return json.Marshal([]any{p.Topic, p.Partition}) }

type args struct {
	Topic      string             `json:"topic"`
	Topics     []string           `json:"topics"`
	Records    []record           `json:"records"`
	Acks       string             `json:"acks"`
	Codec      string             `json:"codec"`
	Idempotent bool               `json:"idempotent"`
	PauseMs    int64              `json:"pause_ms"`
	LingerMs   int64              `json:"linger_ms"`
	TimeoutMs  int64              `json:"timeout_ms"`
	Partitions []int32            `json:"partitions"`
	Partition  int32              `json:"partition"`
	Start      int64              `json:"start"`
	Count      int                `json:"count"`
	Rack       string             `json:"rack"`
	WaitMs     int64              `json:"wait_ms"`
	BackTo     int64              `json:"back_to"`
	Timestamp  int64              `json:"timestamp_ms"`
	Group      string             `json:"group"`
	Strategies []string           `json:"strategies"`
	Instance   string             `json:"instance"`
	Protocol   string             `json:"protocol"`
	SessionMs  int64              `json:"session_ms"`
	Place      place              `json:"place"`
	Offset     int64              `json:"offset"`
	Metadata   string             `json:"metadata"`
	Assignment [][]int32          `json:"assignment"`
	Config     map[string]string  `json:"config"`
	Changes    map[string]*string `json:"changes"`
	Validate   bool               `json:"validate_only"`
	Kind       string             `json:"kind"`
	Name       string             `json:"name"`
	Before     int64              `json:"before"`
	Spec       string             `json:"spec"`
	Replicas   []int32            `json:"replicas"`
	Broker     int32              `json:"broker"`
}

type verb func(args) (any, error)

var verbs = map[string]verb{
	"produce": produce, "read": read, "seek": seek, "pause": pause, "offset_for": offsetFor,
	"commit": commit, "committed": committed,
	"create_topic": createTopic, "delete_topic": deleteTopic, "add_partitions": addPartitions, "list_topics": listTopics,
	"describe_topic": describeTopic, "describe_config": describeConfig, "alter_config": alterConfig, "replace_config": replaceConfig,
	"delete_records": deleteRecords, "list_offsets": listOffsets,
	"list_groups": listGroups, "describe_group": describeGroup, "delete_group": deleteGroup, "group_offsets": groupOffsets,
	"alter_offset": alterOffset, "delete_offset": deleteOffset,
	"describe_cluster": describeCluster, "elect_leader": electLeader, "reassign": reassign, "reassignments": reassignments, "log_dirs": logDirs,
}

var errNotOffered = errors.New("not offered")

func bootstrap() []string { return strings.Split(os.Args[1], ",") }

// main answers until the end of the input, or runs a member.
func main() {
	if len(os.Args) > 2 && os.Args[2] == "member" {
		var asked args
		must(json.Unmarshal([]byte(os.Args[3]), &asked))
		if err := member(asked); errors.Is(err, errNotOffered) {
			say("not_offered", true)
		} else {
			must(err)
		}
		return
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var asked struct {
			Verb string `json:"verb"`
			Args args   `json:"args"`
		}
		must(json.Unmarshal(lines.Bytes(), &asked))
		do, known := verbs[asked.Verb]
		if !known {
			say("not_offered", true)
			continue
		}
		result, err := do(asked.Args)
		if errors.Is(err, errNotOffered) {
			say("not_offered", true)
		} else if err != nil {
			say("refused", err.Error())
		} else {
			say("result", result)
		}
	}
}

var saying sync.Mutex

func say(name string, value any) {
	saying.Lock()
	defer saying.Unlock()
	line, err := json.Marshal(map[string]any{name: value})
	must(err)
	fmt.Println(string(line))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// holding keeps what a member has and says it at each change.
type holding struct {
	lock sync.Mutex
	has  map[place]bool
}

func (h *holding) change(topics map[string][]int32, has bool) {
	h.lock.Lock()
	defer h.lock.Unlock()
	if h.has == nil {
		h.has = map[place]bool{}
	}
	for topic, numbers := range topics {
		for _, number := range numbers {
			if has {
				h.has[place{topic, number}] = true
			} else {
				delete(h.has, place{topic, number})
			}
		}
	}
	all := []place{}
	for each := range h.has {
		all = append(all, each)
	}
	sort.Slice(all, func(i, j int) bool { return fmt.Sprint(all[i]) < fmt.Sprint(all[j]) })
	say("assigned", all)
}

func text(data []byte) *string {
	if data == nil {
		return nil
	}
	said := string(data)
	return &said
}

func bytesOf(said *string) []byte {
	if said == nil {
		return nil
	}
	return []byte(*said)
}
