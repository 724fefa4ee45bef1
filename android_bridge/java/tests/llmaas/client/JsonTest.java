package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What is written is read again; what is no JSON is refused. */
final class JsonTest {
    static List<Object> values() {
        List<Object> values = new ArrayList<>(Arrays.asList(null, true, false, 0L, -1L, 999_999_999_999_999_999L));
        values.addAll(Arrays.asList(0.5, -2.25e-300, 1e18, Double.MAX_VALUE));
        values.addAll(Arrays.asList("", "plain", "\" \\ / \b \f \n \r \t \u0000 \u001f \u007f", "Gr\u00fc\u00dfe \ud83d\ude00"));
        values.add(Collections.emptyList());
        values.add(Arrays.asList(1L, "two", Arrays.asList((Object) null)));
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("", Collections.emptyMap());
        map.put("a \"key\"\n", Arrays.asList(true, 0.5));
        values.add(map);
        return values;
    }

    @ParameterizedTest(name = "{index}")
    @MethodSource("values")
    void whatIsWrittenIsReadAgain(Object value) {
        assertEquals(value, Json.read(Json.write(value)));
        assertEquals(value, Json.read(" \t\r\n" + Json.write(value) + " \n"));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = ' ',
            quoteCharacter = '~',
            value = {"\\u00e9 \u00e9", "\\ud83d\\ude00 \ud83d\ude00", "\\/ /", "\\u0022 \"", "a\\\\b a\\b"})
    void escapesAreCharacters(String escaped, String text) {
        assertEquals(text, Json.read('"' + escaped + '"'));
    }

    @Test
    void controlCharactersAreEscaped() {
        assertEquals("\"\\u000a\\u0000\\\"\\\\\"", Json.write("\n\0\"\\"));
        assertEquals("\"bin:00ff\"", Json.write(new byte[] {0, -1}));
    }

    @Test
    void aNumberThatIsTooLongIsADouble() {
        assertEquals(1e19, Json.read("10000000000000000000"));
        assertEquals(-1e300, Json.read("-1e300"));
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "", " ", "{", "[", "\"", "{]", "[}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{1:2}", "{a:1}", "[1,]",
                "[1 2]", "[,1]", "tru", "nul", "True", "-", "1-2", "1e", "--1", "1.2.3", "\"\\x\"", "\"\\u12\"",
                "\"\\u12g4\"", "\"\\", "\"\\u", "1 1", "{} x", "[] []", "'a'", "\ufeff{}", "{\"a\":1", "[1", "\u0000"
            })
    void whatIsNoJsonIsRefused(String text) {
        LlmaasException.Malformed refused = assertThrows(LlmaasException.Malformed.class, () -> Json.read(text));
        assertEquals("malformed_frame", refused.code());
    }

    @Test
    void onlySoDeep() {
        Json.read("[".repeat(64) + "]".repeat(64));
        for (String open : new String[] {"[", "{\"a\":", "[{\"a\":"}) {
            assertThrows(LlmaasException.Malformed.class, () -> Json.read(open.repeat(100_000)));
        }
        assertThrows(LlmaasException.Malformed.class, () -> Json.read("[".repeat(65) + "]".repeat(65)));
    }

    @Test
    void aResponseIsAnObject() {
        assertEquals(Collections.singletonMap("a", 1L), Json.readMap("{\"a\":1}"));
        assertThrows(LlmaasException.Malformed.class, () -> Json.readMap("[1]"));
    }

    @Test
    void anyTextGivesAValueOrAnErrorOfLlmaas() {
        Random random = new Random(7);
        String good = "{\"id\":[1,-2.5e3,null,true],\"a\\n\\u00e9\":{\"b\":\"\ud83d\ude00\",\"c\":[]}}";
        String others = "{}[]\":,\\u0e+-.tfn \n\ud83d";
        int refused = 0;
        for (int i = 0; i < 20_000; i++) {
            StringBuilder text = new StringBuilder(good);
            for (int n = 1 + random.nextInt(3); n > 0; n--) {
                text.setCharAt(random.nextInt(text.length()), others.charAt(random.nextInt(others.length())));
            }
            text.setLength(random.nextInt(5) == 0 ? random.nextInt(text.length()) : text.length());
            try {
                Json.read(text.toString());
            } catch (LlmaasException.Malformed e) {
                refused++;
            }
        }
        assertTrue(refused > 5000 && refused < 20_000, "refused: " + refused);
    }
}
