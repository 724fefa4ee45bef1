package llmaas.client;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/**
 * Fields of what came from outside.
 *
 * <p>Law: a field that is missing, or of another type, reads as empty; never a ClassCastException.
 */
final class Reply {
    private Reply() {}

    static String text(Map<String, Object> map, String key) {
        Object found = map.get(key);
        return found instanceof String ? (String) found : "";
    }

    static long number(Map<String, Object> map, String key) {
        return number(map, key, 0);
    }

    static long number(Map<String, Object> map, String key, long otherwise) {
        Object found = map.get(key);
        return found instanceof Long ? (Long) found : otherwise;
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> map(Object value) {
        return value instanceof Map ? (Map<String, Object>) value : Collections.<String, Object>emptyMap();
    }

    static Map<String, Object> map(Map<String, Object> map, String key) {
        return map(map.get(key));
    }

    /** The maps in a list. */
    static List<Map<String, Object>> maps(Object value) {
        List<Map<String, Object>> found = new ArrayList<>();
        if (value instanceof List) {
            for (Object item : (List<?>) value) {
                found.add(map(item));
            }
        }
        return found;
    }

    /** The error of a failed reply. */
    static LlmaasException error(Map<String, Object> map) {
        String fault = text(map, "fault");
        LlmaasException.Fault whose =
                fault.equals("caller")
                        ? LlmaasException.Fault.CALLER
                        : fault.equals("machine") ? LlmaasException.Fault.MACHINE : LlmaasException.Fault.SERVICE;
        boolean retryable = Boolean.TRUE.equals(map.get("retryable"));
        return LlmaasException.of(text(map, "code"), text(map, "message"), text(map, "hint"), whose, retryable)
                .keeping(number(map, "n_generated"), number(map, "n_tokens", -1));
    }
}
