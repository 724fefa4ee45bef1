package llmaas.client;

import java.util.LinkedHashMap;
import java.util.Map;

/** What somebody said: {@code role} is "user", "assistant" or "system". */
public final class Message {
    private final String role;
    private final String content;

    public Message(String role, String content) {
        this.role = role;
        this.content = content;
    }

    public String role() {
        return role;
    }

    public String content() {
        return content;
    }

    Map<String, Object> map() {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("role", role);
        map.put("content", content);
        return map;
    }

    static Message of(Map<String, Object> map) {
        return new Message(Reply.text(map, "role"), Reply.text(map, "content"));
    }

    @Override
    public String toString() {
        return role + ": " + content;
    }
}
