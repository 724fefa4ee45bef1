package llmaas.client;

import java.util.Map;

/** A context of the app. */
public final class ContextInfo {
    private final String id;
    private final String name;
    private final long nTokens;
    private final long nMessages;

    private ContextInfo(String id, String name, long nTokens, long nMessages) {
        this.id = id;
        this.name = name;
        this.nTokens = nTokens;
        this.nMessages = nMessages;
    }

    static ContextInfo of(Map<String, Object> map) {
        return new ContextInfo(
                Reply.text(map, "id"), Reply.text(map, "name"), Reply.number(map, "n_tokens"), Reply.number(map, "n_messages"));
    }

    public String id() {
        return id;
    }

    public String name() {
        return name;
    }

    public long nTokens() {
        return nTokens;
    }

    public long nMessages() {
        return nMessages;
    }
}
