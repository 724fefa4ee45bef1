package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.ByteArrayInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What is written is read again; what the protocol does not allow is refused, and takes no memory. */
final class MsgpackTest {
    private static final int MOST_FRAME = 4 << 20;

    private static Map<String, Object> map(Object value) {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("v", value);
        return map;
    }

    private static Object again(Object value) {
        return Msgpack.decode(Msgpack.encode(map(value))).get("v");
    }

    /** Bytes of a value, without those of the map around it. */
    private static int width(Object value) {
        return Msgpack.encode(map(value)).length - 3;
    }

    private static Map<String, Object> read(byte[] frame) throws IOException {
        return Connection.readFrame(new ByteArrayInputStream(frame), MOST_FRAME);
    }

    static List<Object> values() {
        List<Object> values = new ArrayList<>(Arrays.asList(null, true, false, 0.5, -2.25, Double.MAX_VALUE));
        values.addAll(Arrays.asList(Double.NaN, Double.NEGATIVE_INFINITY, -0.0, "", "Gr\u00fc\u00dfe, \u4e16\u754c \ud83d\ude00\u0000"));
        for (int bits : new int[] {5, 7, 8, 15, 16, 31, 32, 63}) {
            long bound = 1L << bits;
            values.addAll(Arrays.asList(bound - 1, bound, bound + 1, -bound + 1, -bound, -bound - 1));
        }
        for (int length : new int[] {15, 16, 31, 32, 255, 256, 65535, 65536}) {
            values.add("x".repeat(length));
            values.add(Collections.nCopies(length, 7L));
            Map<String, Object> map = new LinkedHashMap<>();
            for (int i = 0; i < length; i++) {
                map.put("key " + i, (long) i);
            }
            values.add(map);
        }
        values.add(Arrays.asList(Collections.emptyList(), Collections.emptyMap(), Arrays.asList("a", map(null))));
        return values;
    }

    @ParameterizedTest(name = "{index}")
    @MethodSource("values")
    void whatIsWrittenIsReadAgain(Object value) {
        assertEquals(value, again(value));
    }

    @Test
    void anIntegerTakesTheFewestBytes() {
        long[][] widths = {
            {0, 1}, {127, 1}, {128, 2}, {255, 2}, {256, 3}, {65535, 3}, {65536, 5}, {4294967295L, 5}, {4294967296L, 9},
            {-1, 1}, {-32, 1}, {-33, 2}, {-128, 2}, {-129, 3}, {-32768, 3}, {-32769, 5}, {-2147483648L, 5},
            {-2147483649L, 9}, {Long.MAX_VALUE, 9}, {Long.MIN_VALUE, 9}
        };
        for (long[] each : widths) {
            assertEquals(each[1], width(each[0]), () -> "of " + each[0]);
        }
        assertEquals(7L, again(7), "an Integer is read as a Long");
    }

    @Test
    void aNumberThatIsTooLargeIsTheLargest() throws IOException {
        assertEquals(Long.MAX_VALUE, read(Frames.bytes("0000000c81a178cfffffffffffffffff")).get("x"));
    }

    @Test
    void whatHasNoPlaceInTheProtocolIsNotSent() {
        assertThrows(IllegalArgumentException.class, () -> Msgpack.encode(map(new Object())));
        for (String half : new String[] {"\ud83d", "a\ude00b", "\ude00\ud83d"}) {
            LlmaasException.BadRequest refused =
                    assertThrows(LlmaasException.BadRequest.class, () -> Msgpack.encode(map(half)));
            assertEquals("bad_request", refused.code());
        }
    }

    // -- the frames that all clients share

    static List<String[]> good() throws IOException {
        return Frames.of("good");
    }

    static List<String[]> bad() throws IOException {
        return Frames.of("bad");
    }

    static List<String[]> sent() throws IOException {
        return Frames.of("sent");
    }

    @ParameterizedTest(name = "{index}")
    @MethodSource("good")
    void aGoodFrameIsRead(String hex, String json) throws IOException {
        Map<String, Object> found = read(Frames.bytes(hex));
        assertEquals(json, Json.write(found));
        if (!json.contains("bin:")) { // bytes are read and never sent
            assertEquals(found, Msgpack.decode(Msgpack.encode(found)));
        }
    }

    @ParameterizedTest(name = "{index}")
    @MethodSource("bad")
    void aBadFrameIsRefused(String hex, String code) {
        LlmaasException.Malformed refused =
                assertThrows(LlmaasException.Malformed.class, () -> read(Frames.bytes(hex)));
        assertEquals(code, refused.code());
        assertTrue(!refused.retryable() && refused.hint().length() > 10, refused.hint());
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource("sent")
    void aFrameThatIsSentHasTheseBytes(String name, String hex) throws IOException {
        assertArrayEquals(Frames.bytes(hex), Connection.frame(read(Frames.bytes(hex))));
    }

    // -- hostile bytes

    @Test
    void aFrameThatIsCutIsRefusedOrIncomplete() throws IOException {
        for (String[] each : good()) {
            byte[] whole = Frames.bytes(each[0]);
            for (int n = 0; n < whole.length; n++) {
                byte[] cut = Arrays.copyOf(whole, n);
                assertThrows(EOFException.class, () -> read(cut));
                byte[] body = Arrays.copyOfRange(whole, 4, Math.max(4, n));
                assertThrows(LlmaasException.Malformed.class, () -> Msgpack.decode(body));
            }
        }
    }

    @Test
    void anyBytesGiveAMapOrAnErrorOfLlmaas() throws IOException {
        Random random = new Random(7);
        List<String[]> good = good();
        int refused = 0;
        for (int i = 0; i < 20_000; i++) {
            byte[] whole = Frames.bytes(good.get(random.nextInt(good.size()))[0]);
            byte[] body = Arrays.copyOfRange(whole, 4, whole.length);
            for (int n = 1 + random.nextInt(4); n > 0; n--) {
                body[random.nextInt(body.length)] = (byte) random.nextInt(256);
            }
            try {
                Msgpack.decode(body);
            } catch (LlmaasException.Malformed e) {
                refused++;
            }
        }
        assertTrue(refused > 1000 && refused < 20_000, "refused: " + refused);
    }

    @Test
    void onlySoDeep() {
        Map<String, Object> deepest = map(1L);
        for (int depth = 1; depth < 8; depth++) {
            deepest = map(deepest);
        }
        assertEquals(deepest, Msgpack.decode(Msgpack.encode(deepest)));
        byte[] deeper = Msgpack.encode(map(deepest));
        assertThrows(LlmaasException.Malformed.class, () -> Msgpack.decode(deeper));
    }

    @Test
    void onlySoLong() {
        List<Object> longest = Collections.nCopies(1 << 17, null);
        assertEquals(longest, again(longest));
        byte[] longer = Msgpack.encode(map(Collections.nCopies((1 << 17) + 1, null)));
        assertThrows(LlmaasException.Malformed.class, () -> Msgpack.decode(longer));
    }

    /** A frame, a text, bytes, a list or a map that says that it is large, and is not. */
    @ParameterizedTest
    @ValueSource(strings = {"00400000", "0000000881a161dbffffffff", "0000000881a161c6ffffffff", "0000000881a161dd0001ffff"})
    void aLengthAloneTakesNoMemory(String hex) {
        assumeTrue(ManagementFactory.getThreadMXBean() instanceof com.sun.management.ThreadMXBean);
        com.sun.management.ThreadMXBean threads = (com.sun.management.ThreadMXBean) ManagementFactory.getThreadMXBean();
        long self = Thread.currentThread().getId();
        byte[] frame = Frames.bytes(hex);
        assertThrows(Exception.class, () -> read(frame)); // what is loaded by the first time is not counted
        long before = threads.getThreadAllocatedBytes(self);
        assertThrows(Exception.class, () -> read(frame));
        assertTrue(threads.getThreadAllocatedBytes(self) - before < 1 << 18);
    }
}
