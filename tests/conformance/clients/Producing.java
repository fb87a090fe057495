import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

/** The verb that sends. */
class Producing {
    static Object produce(JsonNode a) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", Clients.bootstrap);
        settings.put("acks", a.get("acks").asText());
        settings.put("compression.type", a.get("codec").asText());
        settings.put("enable.idempotence", a.get("idempotent").asText());
        settings.put("linger.ms", a.get("linger_ms").asText());
        long timeoutMs = a.get("timeout_ms").asLong();
        settings.put("request.timeout.ms", String.valueOf(Math.min(5000, timeoutMs / 2)));
        settings.put("delivery.timeout.ms", String.valueOf(timeoutMs));
        settings.put("retry.backoff.ms", "100");
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (JsonNode each : a.get("records")) {
                sent.add(producer.send(record(a.get("topic").asText(), each)));
                Thread.sleep(a.get("pause_ms").asLong());
            }
            List<String> problems = new ArrayList<>();
            for (Future<RecordMetadata> each : sent) {
                problems.add(problem(each));
            }
            return problems;
        }
    }

    private static ProducerRecord<String, String> record(String topic, JsonNode each) {
        Integer partition = each.get("partition").isNull() ? null : each.get("partition").asInt();
        Long timestamp = each.get("timestamp_ms").isNull() ? null : each.get("timestamp_ms").asLong();
        ProducerRecord<String, String> record =
            new ProducerRecord<>(topic, partition, timestamp, Clients.text(each.get("key")), Clients.text(each.get("value")));
        for (JsonNode header : each.get("headers")) {
            record.headers().add(header.get(0).asText(), header.get(1).asText().getBytes(StandardCharsets.UTF_8));
        }
        return record;
    }

    private static String problem(Future<RecordMetadata> sent) throws InterruptedException {
        try {
            sent.get();
            return null;
        } catch (ExecutionException error) {
            return error.getCause().toString();
        }
    }
}
