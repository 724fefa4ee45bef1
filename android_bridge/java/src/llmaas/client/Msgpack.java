package llmaas.client;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The part of msgpack that the protocol uses: nil, booleans, integers, floats, text, bytes, lists, and maps with text as
 * keys. Integers are Long, floats Double.
 *
 * <p>Law: any bytes give a map or a LlmaasException, and never much more memory than they have themselves.
 */
final class Msgpack {
    private static final int MOST_DEPTH = 8;
    private static final int MOST_ITEMS = 1 << 17;

    private Msgpack() {}

    // -- writing

    static byte[] encode(Map<String, ?> map) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        write(out, map);
        return out.toByteArray();
    }

    private static void number(ByteArrayOutputStream out, long value, int width) {
        for (int i = width - 1; i >= 0; i--) {
            out.write((int) (value >>> (8 * i)));
        }
    }

    /** A head with a length: in the head itself, or in 1, 2 or 4 bytes behind it (0: there is no such head). */
    private static void head(ByteArrayOutputStream out, int n, int fix, int most, int one, int two, int four) {
        if (n < most) {
            out.write(fix | n);
        } else if (one != 0 && n <= 0xff) {
            out.write(one);
            number(out, n, 1);
        } else if (n <= 0xffff) {
            out.write(two);
            number(out, n, 2);
        } else {
            out.write(four);
            number(out, n, 4);
        }
    }

    private static void write(ByteArrayOutputStream out, Object value) {
        if (value == null) {
            out.write(0xc0);
        } else if (value instanceof Boolean) {
            out.write((Boolean) value ? 0xc3 : 0xc2);
        } else if (value instanceof Integer || value instanceof Long) {
            write(out, ((Number) value).longValue());
        } else if (value instanceof Double) {
            out.write(0xcb);
            number(out, Double.doubleToLongBits((Double) value), 8);
        } else if (value instanceof String) {
            byte[] text = utf8((String) value);
            head(out, text.length, 0xa0, 32, 0xd9, 0xda, 0xdb);
            out.write(text, 0, text.length);
        } else if (value instanceof List) {
            List<?> list = (List<?>) value;
            head(out, list.size(), 0x90, 16, 0, 0xdc, 0xdd);
            for (Object item : list) {
                write(out, item);
            }
        } else if (value instanceof Map) {
            Map<?, ?> map = (Map<?, ?>) value;
            head(out, map.size(), 0x80, 16, 0, 0xde, 0xdf);
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                write(out, entry.getKey());
                write(out, entry.getValue());
            }
        } else {
            throw new IllegalArgumentException("a " + value.getClass() + " cannot be sent");
        }
    }

    private static void write(ByteArrayOutputStream out, long value) {
        if (value >= 0 && value < 0x80 || value < 0 && value >= -32) {
            out.write((int) value);
        } else if (value >= 0) {
            int width = value <= 0xff ? 0 : value <= 0xffff ? 1 : value <= 0xffffffffL ? 2 : 3;
            out.write(0xcc + width);
            number(out, value, 1 << width);
        } else {
            int width = value >= Byte.MIN_VALUE ? 0 : value >= Short.MIN_VALUE ? 1 : value >= Integer.MIN_VALUE ? 2 : 3;
            out.write(0xd0 + width);
            number(out, value, 1 << width);
        }
    }

    /** Throws BadRequest for text that has no UTF-8: half of a surrogate pair. */
    static byte[] utf8(String text) {
        try {
            ByteBuffer found = StandardCharsets.UTF_8.newEncoder().encode(java.nio.CharBuffer.wrap(text));
            byte[] bytes = new byte[found.remaining()];
            found.get(bytes);
            return bytes;
        } catch (CharacterCodingException e) {
            String hint = "Cut text between characters, not within them.";
            throw new LlmaasException.BadRequest("bad_request", "text that is not valid Unicode cannot be sent", hint);
        }
    }

    // -- reading

    /** The map that a frame's body is. */
    static Map<String, Object> decode(byte[] body) {
        Reader reader = new Reader(ByteBuffer.wrap(body));
        Object found = reader.read(1);
        if (!(found instanceof Map)) {
            throw LlmaasException.malformed("a frame is no map");
        }
        if (reader.in.hasRemaining()) {
            throw LlmaasException.malformed("a frame holds more than one map");
        }
        @SuppressWarnings("unchecked")
        Map<String, Object> map = (Map<String, Object>) found;
        return map;
    }

    private static final class Reader {
        final ByteBuffer in;

        Reader(ByteBuffer in) {
            this.in = in;
        }

        private void need(long n) {
            if (n < 0 || n > in.remaining()) {
                throw LlmaasException.malformed("a value is cut short");
            }
        }

        private long unsigned(int width) {
            need(width);
            long value = 0;
            for (int i = 0; i < width; i++) {
                value = value << 8 | in.get() & 0xff;
            }
            return value;
        }

        private byte[] bytes(long n) {
            need(n);
            byte[] found = new byte[(int) n];
            in.get(found);
            return found;
        }

        private String text(long n) {
            try {
                return StandardCharsets.UTF_8
                        .newDecoder()
                        .onMalformedInput(CodingErrorAction.REPORT)
                        .decode(ByteBuffer.wrap(bytes(n)))
                        .toString();
            } catch (CharacterCodingException e) {
                throw LlmaasException.malformed("text is no UTF-8");
            }
        }

        private int items(long n) {
            if (n > MOST_ITEMS) {
                throw LlmaasException.malformed("a list or map is too long");
            }
            need(n);
            return (int) n;
        }

        private List<Object> list(long n, int depth) {
            int size = items(n);
            check(depth);
            List<Object> list = new ArrayList<>(Math.min(size, 64));
            for (int i = 0; i < size; i++) {
                list.add(read(depth + 1));
            }
            return list;
        }

        private Map<String, Object> map(long n, int depth) {
            int size = items(n);
            check(depth);
            Map<String, Object> map = new LinkedHashMap<>();
            for (int i = 0; i < size; i++) {
                Object key = read(MOST_DEPTH + 1);
                if (!(key instanceof String)) {
                    throw LlmaasException.malformed("a key is no text");
                }
                map.put((String) key, read(depth + 1));
            }
            return map;
        }

        private void check(int depth) {
            if (depth > MOST_DEPTH) {
                throw LlmaasException.malformed("maps and lists nest too deep");
            }
        }

        Object read(int depth) {
            int head = (int) unsigned(1);
            if (head < 0x80 || head >= 0xe0) {
                return (long) (byte) head;
            } else if (head < 0x90) {
                return map(head & 0x0f, depth);
            } else if (head < 0xa0) {
                return list(head & 0x0f, depth);
            } else if (head < 0xc0) {
                return text(head & 0x1f);
            }
            switch (head) {
                case 0xc0:
                    return null;
                case 0xc2:
                    return false;
                case 0xc3:
                    return true;
                case 0xc4:
                case 0xc5:
                case 0xc6:
                    return bytes(unsigned(1 << (head - 0xc4)));
                case 0xca:
                    return (double) Float.intBitsToFloat((int) unsigned(4));
                case 0xcb:
                    return Double.longBitsToDouble(unsigned(8));
                case 0xcc:
                case 0xcd:
                case 0xce:
                    return unsigned(1 << (head - 0xcc));
                case 0xcf:
                    long large = unsigned(8);
                    return large < 0 ? Long.MAX_VALUE : large;
                case 0xd0:
                    return (long) (byte) unsigned(1);
                case 0xd1:
                    return (long) (short) unsigned(2);
                case 0xd2:
                    return (long) (int) unsigned(4);
                case 0xd3:
                    return unsigned(8);
                case 0xd9:
                case 0xda:
                case 0xdb:
                    return text(unsigned(1 << (head - 0xd9)));
                case 0xdc:
                case 0xdd:
                    return list(unsigned(2 << (head - 0xdc)), depth);
                case 0xde:
                case 0xdf:
                    return map(unsigned(2 << (head - 0xde)), depth);
                default:
                    throw LlmaasException.malformed("a type that the protocol does not use");
            }
        }
    }
}
