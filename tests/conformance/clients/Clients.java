import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/**
 * Apache Kafka's producer, consumer and admin client. serve.go describes what such a program reads and prints; Producing, Consuming
 * and Administering hold the verbs.
 */
public class Clients {
    static final ObjectMapper JSON = new ObjectMapper();
    static String bootstrap;

    /** The client has no way to do this. */
    static class NotOffered extends Exception {}

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[0];
        if (arguments.length > 1) {
            Consuming.member(JSON.readTree(arguments[2]));
            return;
        }
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JsonNode asked = JSON.readTree(line);
            try {
                say("result", answer(asked.get("verb").asText(), asked.get("args")));
            } catch (NotOffered none) {
                say("not_offered", true);
            } catch (Exception error) {
                Throwable cause = error.getCause() == null ? error : error.getCause();
                say("refused", cause.getClass().getSimpleName() + ": " + cause.getMessage());
            }
        }
        System.exit(0);
    }

    static Object answer(String verb, JsonNode a) throws Exception {
        return switch (verb) {
            case "produce" -> Producing.produce(a);
            case "read" -> Consuming.read(a);
            case "seek" -> Consuming.seek(a);
            case "pause" -> Consuming.pause(a);
            case "offset_for" -> Consuming.offsetFor(a);
            case "commit" -> Consuming.commit(a);
            case "committed" -> Consuming.committed(a);
            default -> Administering.answer(verb, a);
        };
    }

    static synchronized void say(String name, Object value) throws Exception {
        System.out.println(JSON.writeValueAsString(value == null ? Map.of(name, JSON.nullNode()) : Map.of(name, value)));
        System.out.flush();
    }

    static String text(JsonNode node) {
        return node == null || node.isNull() ? null : node.asText();
    }
}
