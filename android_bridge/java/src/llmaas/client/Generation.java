package llmaas.client;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What is added to a context, and how it is answered. What is not set is not sent, so that the daemon's default holds.
 *
 * <pre>{@code Generation.of("Which folder?").maxTokens(16).temperature(0)}</pre>
 */
public final class Generation {
    private final List<Message> messages;
    private final Map<String, Object> fields = new LinkedHashMap<>();

    private Generation(List<Message> messages) {
        this.messages = messages;
    }

    /** The user says this. */
    public static Generation of(String text) {
        return of(Collections.singletonList(new Message("user", text)));
    }

    /** These messages; none: the model goes on from where the context ends. */
    public static Generation of(List<Message> messages) {
        return new Generation(new ArrayList<>(messages));
    }

    private Generation with(String name, Object value) {
        fields.put(name, value);
        return this;
    }

    /** Most tokens of the answer. */
    public Generation maxTokens(int n) {
        return with("max_tokens", n);
    }

    /** How much is left to chance; 0: nothing, the likeliest token each time. */
    public Generation temperature(double value) {
        return with("temperature", value);
    }

    public Generation topK(int value) {
        return with("top_k", value);
    }

    public Generation topP(double value) {
        return with("top_p", value);
    }

    public Generation minP(double value) {
        return with("min_p", value);
    }

    public Generation seed(long value) {
        return with("seed", value);
    }

    /** Texts of which each ends the answer; they are not told. */
    public Generation stop(List<String> texts) {
        return with("stop", new ArrayList<>(texts));
    }

    /** The answer keeps to this GBNF grammar. */
    public Generation grammar(String gbnf) {
        return with("grammar", gbnf);
    }

    /** The answer is JSON that is valid by this schema. */
    public Generation jsonSchema(String schema) {
        return with("json_schema", schema);
    }

    /** 0, the most urgent, to 9; 1 is what a person waits for, 5 the default, 8 what nobody waits for. */
    public Generation priority(int value) {
        return with("priority", value);
    }

    /** Seconds after which the request fails. */
    public Generation deadline(double seconds) {
        return with("deadline_s", seconds);
    }

    List<Message> messages() {
        return messages;
    }

    Map<String, Object> fields() {
        return fields;
    }
}
