import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.regex.Pattern;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.StringDeserializer;

/** The verbs that read, and a group's member. */
class Consuming {
    private static final Duration POLL = Duration.ofMillis(100);
    private static final long TAKE_TIMEOUT_MS = 60_000;

    private static KafkaConsumer<String, String> consumer(Map<String, String> more) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", Clients.bootstrap);
        settings.put("enable.auto.commit", "false");
        settings.put("auto.offset.reset", "earliest");
        settings.putAll(more);
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    private static TopicPartition place(JsonNode node) {
        return new TopicPartition(node.get(0).asText(), node.get(1).asInt());
    }

    static Object read(JsonNode a) {
        Map<String, String> options = new HashMap<>(Map.of("fetch.max.wait.ms", a.get("wait_ms").asText()));
        options.put("client.rack", a.get("rack").asText());
        options.put("request.timeout.ms", String.valueOf(a.get("wait_ms").asLong() + 30_000));
        try (KafkaConsumer<String, String> consumer = consumer(options)) {
            List<TopicPartition> places = new ArrayList<>();
            a.get("partitions").forEach(number -> places.add(new TopicPartition(a.get("topic").asText(), number.asInt())));
            consumer.assign(places);
            if (a.get("start").asLong() == -2) {
                consumer.seekToBeginning(places);
            } else {
                places.forEach(place -> consumer.seek(place, a.get("start").asLong()));
            }
            List<Map<String, Object>> found = take(consumer, a.get("count").asInt());
            consumer.close(Duration.ZERO); // An orderly end would wait for the fetch under way.
            return found;
        }
    }

    private static List<Map<String, Object>> take(KafkaConsumer<String, String> consumer, int count) {
        List<Map<String, Object>> found = new ArrayList<>();
        long deadlineMs = System.currentTimeMillis() + TAKE_TIMEOUT_MS;
        while (found.size() < count) {
            if (System.currentTimeMillis() > deadlineMs) {
                throw new IllegalStateException("no more records came");
            }
            for (ConsumerRecord<String, String> each : consumer.poll(POLL)) {
                if (found.size() < count) {
                    found.add(record(each));
                } else {
                    // What came with the others is left for the next time.
                    consumer.seek(new TopicPartition(each.topic(), each.partition()), each.offset());
                    break;
                }
            }
        }
        return found;
    }

    private static Map<String, Object> record(ConsumerRecord<String, String> each) {
        List<List<String>> headers = new ArrayList<>();
        for (Header header : each.headers()) {
            headers.add(List.of(header.key(), new String(header.value(), StandardCharsets.UTF_8)));
        }
        Map<String, Object> record = new HashMap<>();
        record.put("key", each.key());
        record.put("value", each.value());
        record.put("headers", headers);
        record.put("partition", each.partition());
        record.put("timestamp_ms", each.timestamp());
        record.put("offset", each.offset());
        return record;
    }

    static Object seek(JsonNode a) {
        TopicPartition place = new TopicPartition(a.get("topic").asText(), 0);
        try (KafkaConsumer<String, String> consumer = consumer(Map.of())) {
            consumer.assign(List.of(place));
            consumer.seek(place, 0);
            List<Map<String, Object>> found = new ArrayList<>(take(consumer, a.get("count").asInt()));
            consumer.seek(place, a.get("back_to").asLong());
            found.addAll(take(consumer, 1));
            return found.stream().map(each -> each.get("offset")).toList();
        }
    }

    static Object pause(JsonNode a) {
        List<TopicPartition> places = List.of(new TopicPartition(a.get("topic").asText(), 0), new TopicPartition(a.get("topic").asText(), 1));
        try (KafkaConsumer<String, String> consumer = consumer(Map.of())) {
            consumer.assign(places);
            consumer.seekToBeginning(places);
            consumer.pause(places.subList(0, 1));
            List<Map<String, Object>> before = take(consumer, a.get("count").asInt());
            consumer.resume(places.subList(0, 1));
            List<Map<String, Object>> after = take(consumer, a.get("count").asInt());
            return List.of(before.stream().map(each -> each.get("partition")).toList(), after.stream().map(each -> each.get("partition")).toList());
        }
    }

    static Object offsetFor(JsonNode a) {
        TopicPartition place = new TopicPartition(a.get("topic").asText(), a.get("partition").asInt());
        try (KafkaConsumer<String, String> consumer = consumer(Map.of())) {
            return consumer.offsetsForTimes(Map.of(place, a.get("timestamp_ms").asLong())).get(place).offset();
        }
    }

    static Object commit(JsonNode a) {
        try (KafkaConsumer<String, String> consumer = consumer(Map.of("group.id", a.get("group").asText()))) {
            consumer.commitSync(Map.of(place(a.get("place")), new OffsetAndMetadata(a.get("offset").asLong(), a.get("metadata").asText())));
            return null;
        }
    }

    static Object committed(JsonNode a) {
        TopicPartition place = place(a.get("place"));
        try (KafkaConsumer<String, String> consumer = consumer(Map.of("group.id", a.get("group").asText()))) {
            OffsetAndMetadata found = consumer.committed(Set.of(place)).get(place);
            return List.of(found.offset(), found.metadata());
        }
    }

    /** A member that commits what it reads, until SIGTERM. */
    static void member(JsonNode a) throws Exception {
        KafkaConsumer<String, String> consumer = consumer(membership(a));
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            consumer.wakeup();
            try {
                main.join();
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
            }
        }));
        subscribe(consumer, a);
        try {
            while (true) {
                for (ConsumerRecord<String, String> each : consumer.poll(POLL)) {
                    Clients.say("value", each.value());
                }
                tryToCommit(consumer);
            }
        } catch (WakeupException ended) {
            consumer.close();
        }
    }

    private static void tryToCommit(KafkaConsumer<String, String> consumer) {
        try {
            consumer.commitSync();
        } catch (CommitFailedException | RebalanceInProgressException first) {
            // A rebalance came first: what is not committed is read again.
        }
    }

    private static Map<String, String> membership(JsonNode a) {
        Map<String, String> settings = new HashMap<>(Map.of("group.id", a.get("group").asText(), "metadata.max.age.ms", "1000"));
        if (!a.get("instance").asText().isEmpty()) {
            settings.put("group.instance.id", a.get("instance").asText());
        }
        if (a.get("protocol").asText().equals("consumer")) {
            settings.put("group.protocol", "consumer");
            return settings;
        }
        Map<String, String> known = Map.of("range", "RangeAssignor", "roundrobin", "RoundRobinAssignor", "sticky", "StickyAssignor",
            "cooperative-sticky", "CooperativeStickyAssignor");
        List<String> strategies = new ArrayList<>();
        a.get("strategies").forEach(each -> strategies.add("org.apache.kafka.clients.consumer." + known.get(each.asText())));
        if (!strategies.isEmpty()) {
            settings.put("partition.assignment.strategy", String.join(",", strategies));
        }
        settings.put("session.timeout.ms", a.get("session_ms").asText());
        settings.put("heartbeat.interval.ms", "300");
        return settings;
    }

    private static void subscribe(KafkaConsumer<String, String> consumer, JsonNode a) {
        ConsumerRebalanceListener told = new ConsumerRebalanceListener() {
            @Override
            public void onPartitionsAssigned(Collection<TopicPartition> more) {
                tell(consumer.assignment());
            }

            @Override
            public void onPartitionsRevoked(Collection<TopicPartition> fewer) {
                List<TopicPartition> left = new ArrayList<>(consumer.assignment());
                left.removeAll(fewer);
                tell(left);
            }
        };
        String first = a.get("topics").get(0).asText();
        if (!first.startsWith("^")) {
            List<String> topics = new ArrayList<>();
            a.get("topics").forEach(each -> topics.add(each.asText()));
            consumer.subscribe(topics, told);
        } else if (a.get("protocol").asText().equals("consumer")) {
            consumer.subscribe(new SubscriptionPattern(first), told); // The coordinator resolves it.
        } else {
            consumer.subscribe(Pattern.compile(first), told);
        }
    }

    private static void tell(Collection<TopicPartition> held) {
        try {
            Clients.say("assigned", held.stream().map(each -> List.of(each.topic(), each.partition())).toList());
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }
}
