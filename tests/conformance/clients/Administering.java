import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.CreateTopicsOptions;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ElectionNotNeededException;

/** The verbs of an administrator. */
class Administering {
    private static Admin admin;

    private interface Verb {
        Object ask(JsonNode a) throws Exception;
    }

    private static final Map<String, Verb> VERBS = new HashMap<>();

    static {
        VERBS.put("create_topic", Administering::createTopic);
        VERBS.put("delete_topic", a -> done(admin.deleteTopics(List.of(a.get("topic").asText())).all()));
        VERBS.put("add_partitions", a -> done(admin.createPartitions(Map.of(a.get("topic").asText(), NewPartitions.increaseTo(a.get("count").asInt()))).all()));
        VERBS.put("list_topics", a -> admin.listTopics().names().get());
        VERBS.put("describe_topic", Administering::describeTopic);
        VERBS.put("describe_config", Administering::describeConfig);
        VERBS.put("alter_config", Administering::alterConfig);
        VERBS.put("delete_records", a -> done(admin.deleteRecords(Map.of(place(a), RecordsToDelete.beforeOffset(a.get("before").asLong()))).all()));
        VERBS.put("list_offsets", Administering::listOffsets);
        VERBS.put("list_groups", a -> admin.listGroups().all().get().stream().map(each -> each.groupId()).toList());
        VERBS.put("describe_group", Administering::describeGroup);
        VERBS.put("delete_group", a -> done(admin.deleteConsumerGroups(List.of(a.get("group").asText())).all()));
        VERBS.put("group_offsets", Administering::groupOffsets);
        VERBS.put("alter_offset", a -> done(admin.alterConsumerGroupOffsets(a.get("group").asText(),
            Map.of(place(a), new OffsetAndMetadata(a.get("offset").asLong()))).all()));
        VERBS.put("delete_offset", a -> done(admin.deleteConsumerGroupOffsets(a.get("group").asText(), Set.of(place(a))).all()));
        VERBS.put("describe_cluster", Administering::describeCluster);
        VERBS.put("elect_leader", Administering::electLeader);
        VERBS.put("reassign", Administering::reassign);
        VERBS.put("reassignments", a -> places(admin.listPartitionReassignments().reassignments().get().keySet()));
        VERBS.put("log_dirs", Administering::logDirs);
    }

    static Object answer(String verb, JsonNode a) throws Exception {
        if (!VERBS.containsKey(verb)) {
            throw new Clients.NotOffered();
        }
        if (admin == null) {
            admin = Admin.create(Map.of("bootstrap.servers", Clients.bootstrap));
        }
        return VERBS.get(verb).ask(a);
    }

    private static Object done(KafkaFuture<?> future) throws Exception {
        future.get();
        return null;
    }

    private static TopicPartition place(JsonNode a) {
        return new TopicPartition(a.get("place").get(0).asText(), a.get("place").get(1).asInt());
    }

    private static Object places(Collection<TopicPartition> found) {
        return found.stream().map(each -> List.of(each.topic(), each.partition())).toList();
    }

    private static Object createTopic(JsonNode a) throws Exception {
        Map<Integer, List<Integer>> assignment = new HashMap<>();
        for (JsonNode replicas : a.get("assignment")) {
            List<Integer> ids = new ArrayList<>();
            replicas.forEach(each -> ids.add(each.asInt()));
            assignment.put(assignment.size(), ids);
        }
        String topic = a.get("topic").asText();
        NewTopic asked = assignment.isEmpty() ? new NewTopic(topic, a.get("count").asInt(), (short) 3) : new NewTopic(topic, assignment);
        Map<String, String> config = new HashMap<>();
        a.get("config").fields().forEachRemaining(each -> config.put(each.getKey(), each.getValue().asText()));
        return done(admin.createTopics(List.of(asked.configs(config)), new CreateTopicsOptions().validateOnly(a.get("validate_only").asBoolean())).all());
    }

    private static Object describeTopic(JsonNode a) throws Exception {
        TopicDescription found = admin.describeTopics(List.of(a.get("topic").asText())).allTopicNames().get().get(a.get("topic").asText());
        return found.partitions().stream().map(each -> Map.of("leader", each.leader() == null ? -1 : each.leader().id(),
            "replicas", each.replicas().stream().map(Node::id).toList(), "isr", each.isr().stream().map(Node::id).toList())).toList();
    }

    private static ConfigResource resource(JsonNode a) {
        return new ConfigResource(ConfigResource.Type.valueOf(a.get("kind").asText().toUpperCase()), a.get("name").asText());
    }

    private static Object describeConfig(JsonNode a) throws Exception {
        Map<String, String> all = new HashMap<>();
        for (ConfigEntry each : admin.describeConfigs(List.of(resource(a))).all().get().get(resource(a)).entries()) {
            all.put(each.name(), each.value());
        }
        return all;
    }

    private static Object alterConfig(JsonNode a) throws Exception {
        List<AlterConfigOp> changes = new ArrayList<>();
        a.get("changes").fields().forEachRemaining(each -> {
            String value = Clients.text(each.getValue());
            changes.add(new AlterConfigOp(new ConfigEntry(each.getKey(), value), value == null ? AlterConfigOp.OpType.DELETE : AlterConfigOp.OpType.SET));
        });
        return done(admin.incrementalAlterConfigs(Map.of(resource(a), changes)).all());
    }

    private static Object listOffsets(JsonNode a) throws Exception {
        Map<String, OffsetSpec> specs = Map.of("earliest", OffsetSpec.earliest(), "latest", OffsetSpec.latest(), "max-timestamp", OffsetSpec.maxTimestamp());
        return admin.listOffsets(Map.of(place(a), specs.get(a.get("spec").asText()))).partitionResult(place(a)).get().offset();
    }

    private static Object describeGroup(JsonNode a) throws Exception {
        ConsumerGroupDescription found = admin.describeConsumerGroups(List.of(a.get("group").asText())).all().get().get(a.get("group").asText());
        return Map.of("state", found.groupState().toString().toLowerCase(), "members", found.members().size());
    }

    private static Object groupOffsets(JsonNode a) throws Exception {
        Map<TopicPartition, OffsetAndMetadata> found = admin.listConsumerGroupOffsets(a.get("group").asText()).partitionsToOffsetAndMetadata().get();
        return found.entrySet().stream().map(each -> List.of(each.getKey().topic(), each.getKey().partition(), each.getValue().offset())).toList();
    }

    private static Object describeCluster(JsonNode a) throws Exception {
        var found = admin.describeCluster();
        List<Integer> ids = found.nodes().get().stream().map(Node::id).sorted().toList();
        return Map.of("id", found.clusterId().get(), "controller", found.controller().get().id(), "brokers", ids);
    }

    private static Object electLeader(JsonNode a) throws Exception {
        ElectionType type = ElectionType.valueOf(a.get("kind").asText().toUpperCase());
        for (Optional<Throwable> error : admin.electLeaders(type, Set.of(place(a))).partitions().get().values()) {
            if (error.isPresent() && !(error.get() instanceof ElectionNotNeededException)) {
                throw (Exception) error.get();
            }
        }
        return null;
    }

    private static Object reassign(JsonNode a) throws Exception {
        List<Integer> ids = new ArrayList<>();
        a.get("replicas").forEach(each -> ids.add(each.asInt()));
        Optional<NewPartitionReassignment> target = ids.isEmpty() ? Optional.empty() : Optional.of(new NewPartitionReassignment(ids));
        return done(admin.alterPartitionReassignments(Map.of(place(a), target)).all());
    }

    private static Object logDirs(JsonNode a) throws Exception {
        List<List<Object>> all = new ArrayList<>();
        int broker = a.get("broker").asInt();
        admin.describeLogDirs(List.of(broker)).allDescriptions().get().get(broker).values().forEach(directory ->
            directory.replicaInfos().forEach((place, info) -> all.add(List.of(place.topic(), place.partition(), info.size()))));
        return all;
    }
}
