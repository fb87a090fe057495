import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Duration;
import java.time.OffsetDateTime;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Joined;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.WindowStore;

/**
 * Flights as a stream, with Kafka Streams: running totals, windows and a join, whose state outlives this program in changelog topics.
 *
 * <p>Usage: FlightStreams BOOTSTRAP STATE_DIRECTORY. Ends with SIGTERM.
 */
public class FlightStreams {
    static final String NAME = "kafka-streams";
    static final ObjectMapper JSON = new ObjectMapper();
    static final Serde<String> TEXT = Serdes.String();
    static final Serde<JsonNode> TREE = Serdes.serdeFrom((topic, tree) -> written(tree), (topic, bytes) -> read(bytes));

    public static void main(String[] arguments) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, NAME);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[1]);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 500);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0); // An output for each flight, not for each commit.
        StreamsBuilder builder = new StreamsBuilder();
        build(builder);
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    static void build(StreamsBuilder builder) {
        // Windows go by the time of the flight, not of the record.
        KStream<String, JsonNode> flights =
                builder.stream("flights", Consumed.with(TEXT, TREE).withTimestampExtractor((record, before) -> scheduledMs((JsonNode) record.value())));
        KTable<String, JsonNode> airlines = builder.table("airlines", Consumed.with(TEXT, TREE), Materialized.as("airlines"));

        // State: what each carrier has so far, as a fold over its flights.
        KGroupedStream<String, JsonNode> ofCarrier = flights.groupByKey(Grouped.with(TEXT, TREE));
        Materialized<String, JsonNode, KeyValueStore<Bytes, byte[]>> totals = Materialized.as("totals");
        ofCarrier.aggregate(
                        () -> JSON.createObjectNode().put("flights", 0).put("cancelled", 0).put("delay_min", 0),
                        (carrier, flight, soFar) -> total(flight, soFar),
                        totals.withKeySerde(TEXT).withValueSerde(TREE))
                .toStream()
                .to(NAME + "-totals", Produced.with(TEXT, TREE));

        // A window: the mean delay of each carrier in each hour of the calendar. Its changelog lives as long as flights are old.
        Materialized<String, JsonNode, WindowStore<Bytes, byte[]>> hours = Materialized.as("hours");
        flights.filter((carrier, flight) -> !flight.get("dep_delay").isNull())
                .groupByKey(Grouped.with(TEXT, TREE))
                .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofHours(1), Duration.ofDays(3)))
                .aggregate(
                        () -> JSON.createObjectNode().put("flights", 0).put("delay_min", 0),
                        (carrier, flight, soFar) -> mean(flight, soFar),
                        hours.withKeySerde(TEXT).withValueSerde(TREE).withRetention(Duration.ofDays(36500)))
                .toStream()
                .map((window, hour) -> KeyValue.pair(window.key(), (JsonNode) ((ObjectNode) hour).put("start", window.window().start())))
                .to(NAME + "-hours", Produced.with(TEXT, TREE));

        // A join: each flight with the name of its airline, a table that another topic fills.
        flights.join(airlines, (flight, airline) -> named(flight, airline), Joined.with(TEXT, TREE, TREE))
                .to(NAME + "-named", Produced.with(TEXT, TREE));
    }

    static long scheduledMs(JsonNode flight) {
        return OffsetDateTime.parse(flight.get("time_hour").asText()).toInstant().toEpochMilli();
    }

    static JsonNode total(JsonNode flight, JsonNode soFar) {
        JsonNode delay = flight.get("dep_delay");
        return ((ObjectNode) soFar)
                .put("flights", soFar.get("flights").asInt() + 1)
                .put("cancelled", soFar.get("cancelled").asInt() + (delay.isNull() ? 1 : 0))
                .put("delay_min", soFar.get("delay_min").asInt() + delay.asInt(0));
    }

    static JsonNode mean(JsonNode flight, JsonNode soFar) {
        int count = soFar.get("flights").asInt() + 1;
        int delayMin = soFar.get("delay_min").asInt() + flight.get("dep_delay").asInt();
        return ((ObjectNode) soFar).put("flights", count).put("delay_min", delayMin).put("mean_min", (double) delayMin / count);
    }

    static JsonNode named(JsonNode flight, JsonNode airline) {
        return ((ObjectNode) flight.deepCopy()).set("airline", airline.get("name"));
    }

    static byte[] written(JsonNode tree) {
        try {
            return tree == null ? null : JSON.writeValueAsBytes(tree);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    static JsonNode read(byte[] bytes) {
        try {
            return bytes == null ? null : JSON.readTree(bytes);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }
}
