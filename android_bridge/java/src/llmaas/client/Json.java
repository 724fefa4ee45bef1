package llmaas.client;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON, for HTTP. Integers are Long, other numbers Double.
 *
 * <p>Law: any text gives a value or a LlmaasException.
 */
final class Json {
    private static final int MOST_DEPTH = 64;
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    // -- writing

    static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(out, value);
        return out.toString();
    }

    private static void write(StringBuilder out, Object value) {
        if (value instanceof Map) {
            String before = "{";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(before);
                quote(out, (String) entry.getKey());
                out.append(':');
                write(out, entry.getValue());
                before = ",";
            }
            out.append(before.equals("{") ? "{}" : "}");
        } else if (value instanceof List) {
            out.append('[');
            String before = "";
            for (Object item : (List<?>) value) {
                out.append(before);
                write(out, item);
                before = ",";
            }
            out.append(']');
        } else if (value instanceof String) {
            quote(out, (String) value);
        } else if (value instanceof byte[]) {
            StringBuilder hex = new StringBuilder("bin:");
            for (byte each : (byte[]) value) {
                hex.append(String.format("%02x", each & 0xff));
            }
            quote(out, hex.toString());
        } else {
            out.append(value); // null, booleans, numbers
        }
    }

    private static void quote(StringBuilder out, String value) {
        out.append('"');
        for (int i = 0; i < value.length(); i++) {
            char c = value.charAt(i);
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 0x20) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    // -- reading

    static Object read(String text) {
        Json json = new Json(text);
        Object found = json.value(1);
        if (json.peek() != 0 || json.at < text.length()) {
            throw json.wrong();
        }
        return found;
    }

    /** The map that a text is. */
    @SuppressWarnings("unchecked")
    static Map<String, Object> readMap(String text) {
        Object found = read(text);
        if (!(found instanceof Map)) {
            throw LlmaasException.malformed("it is no object of JSON");
        }
        return (Map<String, Object>) found;
    }

    private LlmaasException wrong() {
        return LlmaasException.malformed("it is no JSON, at character " + at);
    }

    /** The next character that is no white space; 0 at the end. */
    private char peek() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        return at < text.length() ? text.charAt(at) : 0;
    }

    private boolean takes(char c) {
        if (peek() != c) {
            return false;
        }
        at++;
        return true;
    }

    private void want(char c) {
        if (!takes(c)) {
            throw wrong();
        }
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw wrong();
        }
        at += word.length();
        return value;
    }

    private Object value(int depth) {
        if (depth > MOST_DEPTH) {
            throw wrong();
        }
        switch (peek()) {
            case '{':
                return object(depth);
            case '[':
                return list(depth);
            case '"':
                return string();
            case 't':
                return word("true", true);
            case 'f':
                return word("false", false);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) {
        want('{');
        Map<String, Object> map = new LinkedHashMap<>();
        if (takes('}')) {
            return map;
        }
        do {
            if (peek() != '"') {
                throw wrong();
            }
            String key = string();
            want(':');
            map.put(key, value(depth + 1));
        } while (takes(','));
        want('}');
        return map;
    }

    private List<Object> list(int depth) {
        want('[');
        List<Object> list = new ArrayList<>();
        if (takes(']')) {
            return list;
        }
        do {
            list.add(value(depth + 1));
        } while (takes(','));
        want(']');
        return list;
    }

    private Object number() {
        int start = at;
        while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String digits = text.substring(start, at);
        try {
            if (digits.matches("-?[0-9]{1,18}")) {
                return Long.valueOf(digits);
            }
            return Double.valueOf(digits);
        } catch (NumberFormatException e) {
            throw wrong();
        }
    }

    private String string() {
        StringBuilder out = new StringBuilder();
        at++;
        while (at < text.length()) {
            char c = text.charAt(at++);
            if (c == '"') {
                return out.toString();
            }
            out.append(c == '\\' ? escaped() : c);
        }
        throw wrong();
    }

    private char escaped() {
        char c = at < text.length() ? text.charAt(at++) : 0;
        int plain = "bfnrt\"\\/".indexOf(c);
        if (c != 0 && plain >= 0) {
            return "\b\f\n\r\t\"\\/".charAt(plain);
        }
        if (c != 'u' || at + 4 > text.length() || !text.substring(at, at + 4).matches("[0-9a-fA-F]{4}")) {
            throw wrong();
        }
        at += 4;
        return (char) Integer.parseInt(text.substring(at - 4, at), 16);
    }
}
