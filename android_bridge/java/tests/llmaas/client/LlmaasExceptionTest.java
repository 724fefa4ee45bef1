package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotSame;
import static org.junit.jupiter.api.Assertions.assertSame;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A failed reply is an error of the class that its code names, whatever else is in it. */
final class LlmaasExceptionTest {
    private static Map<String, Object> failed(String code) {
        Map<String, Object> reply = new LinkedHashMap<>();
        reply.put("type", "failed");
        reply.put("code", code);
        reply.put("message", "a message");
        reply.put("hint", "a hint");
        reply.put("fault", "machine");
        reply.put("retryable", true);
        reply.put("n_generated", 3L);
        reply.put("n_tokens", 40L);
        return reply;
    }

    @ParameterizedTest
    @CsvSource({
        "not_serving, NotServing, true",
        "not_trusted, NotTrusted, false",
        "busy, Busy, true",
        "bad_token, BadToken, false",
        "bad_request, BadRequest, false",
        "unknown_context, UnknownContext, false",
        "context_too_long, ContextTooLong, false",
        "cancelled, Cancelled, false",
        "malformed_frame, Malformed, false",
        "frame_too_large, Malformed, false",
        "a_code_of_tomorrow, LlmaasException, true"
    })
    void aCodeNamesAClass(String code, String name, boolean retryable) {
        LlmaasException error = Reply.error(failed(code));
        assertEquals(name, error.getClass().getSimpleName());
        assertEquals(
                Arrays.asList(code, "a message", "a hint", retryable),
                Arrays.asList(error.code(), error.getMessage(), error.hint(), error.retryable()));
        assertEquals(Arrays.asList(3L, 40L), Arrays.asList(error.nGenerated(), error.nTokens()));
    }

    @ParameterizedTest
    @ValueSource(strings = {"busy", "cancelled", "frame_too_large", "a_code_of_tomorrow"})
    void eachThreadThatAsksGetsItsOwn(String code) {
        LlmaasException error = Reply.error(failed(code));
        LlmaasException again = error.again();
        assertNotSame(error, again);
        assertSame(error, again.getCause());
        assertEquals(error.getClass(), again.getClass());
        assertEquals(
                Arrays.asList(error.code(), error.getMessage(), error.hint(), error.fault(), error.retryable()),
                Arrays.asList(again.code(), again.getMessage(), again.hint(), again.fault(), again.retryable()));
        assertEquals(Arrays.asList(3L, 40L), Arrays.asList(again.nGenerated(), again.nTokens()));
    }

    @Test
    void whoseFaultItIs() {
        Map<String, Object> reply = failed("a_code_of_tomorrow");
        for (LlmaasException.Fault fault : LlmaasException.Fault.values()) {
            reply.put("fault", fault.name().toLowerCase(java.util.Locale.ROOT));
            assertEquals(fault, Reply.error(reply).fault());
        }
        reply.put("fault", "nobody's");
        assertEquals(LlmaasException.Fault.SERVICE, Reply.error(reply).fault());
    }

    @Test
    void fieldsThatAreMissingOrOfAnotherTypeAreEmpty() {
        Map<String, Object> reply = new LinkedHashMap<>();
        for (String key : failed("x").keySet()) {
            reply.put(key, Arrays.asList(7L));
        }
        for (Map<String, Object> each : Arrays.asList(reply, new LinkedHashMap<String, Object>())) {
            LlmaasException error = Reply.error(each);
            assertEquals(
                    Arrays.asList("", "", "", false, 0L, -1L),
                    Arrays.asList(
                            error.code(),
                            error.getMessage(),
                            error.hint(),
                            error.retryable(),
                            error.nGenerated(),
                            error.nTokens()));
        }
    }
}
