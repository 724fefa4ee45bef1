package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What a client of HTTP asks for, and how it reads what comes. */
@Timeout(60)
final class HttpClientTest {
    private static final long RETRY_MS = 30_000;

    private static HttpClient client(FakeDaemon daemon, long retryMs) {
        return new HttpClient(daemon.endpoint, "mail", "llmaas_0", retryMs);
    }

    private static Answer ask(Client client) {
        return client.generate("inbox", Generation.of("hello").maxTokens(8));
    }

    /** A request: its first line and headers, and its body. */
    private static String[] request(FakeDaemon.Peer peer) throws IOException {
        ByteArrayOutputStream head = new ByteArrayOutputStream();
        while (!head.toString().endsWith("\r\n\r\n")) {
            head.write(peer.in.read());
        }
        String text = head.toString();
        int at = text.indexOf("Content-Length: ");
        int n = at < 0 ? 0 : Integer.parseInt(text.substring(at + 16, text.indexOf('\r', at)));
        return new String[] {text, new String(peer.in.readNBytes(n), StandardCharsets.UTF_8)};
    }

    private static void say(FakeDaemon.Peer peer, String text) throws IOException {
        peer.out.write(text.getBytes(StandardCharsets.UTF_8));
        peer.out.flush();
    }

    private static String response(String status, String body) {
        int n = body.getBytes(StandardCharsets.UTF_8).length;
        return "HTTP/1.1 " + status + "\r\nContent-Length: " + n + "\r\n\r\n" + body;
    }

    private static FakeDaemon.Talk answering(String status, String body) {
        return peer -> {
            request(peer);
            say(peer, response(status, body));
        };
    }

    private static String piece(String text) {
        return "data: {\"choices\":[{\"delta\":{\"content\":" + Json.write(text) + "}}]}\n\n";
    }

    private static final String ENDS =
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}],"
                    + "\"llmaas\":{\"context\":\"c0ffee\",\"n_tokens\":9}}\n\ndata: [DONE]\n\n";

    private static FakeDaemon.Talk streaming(String body) {
        return peer -> {
            request(peer);
            say(peer, "HTTP/1.1 200 OK\r\n\r\n" + body);
        };
    }

    @Test
    void anAnswerByIteration() throws IOException {
        List<String[]> read = Collections.synchronizedList(new ArrayList<>());
        FakeDaemon.Talk talk =
                peer -> {
                    read.add(request(peer));
                    String body = ": a comment\n" + piece("Gr\u00fc") + piece("") + piece("\u00dfe \ud83d\ude00") + ENDS;
                    byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
                    say(peer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    for (int at = 0; at < bytes.length; at += 7) { // through characters and lines
                        int n = Math.min(7, bytes.length - at);
                        say(peer, Integer.toHexString(n) + ";x=y\r\n");
                        peer.out.write(bytes, at, n);
                        say(peer, "\r\n");
                    }
                    say(peer, "0\r\n\r\n");
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = client(daemon, 0);
                Answer answer = ask(client)) {
            List<String> pieces = new ArrayList<>();
            answer.forEach(pieces::add);
            assertEquals(Arrays.asList("Gr\u00fc", "\u00dfe \ud83d\ude00"), pieces);
            Done done = answer.done();
            assertEquals(Arrays.asList("c0ffee", "length", 9L), Arrays.asList(done.context(), done.reason(), done.nTokens()));
        }
        String head = read.get(0)[0];
        assertTrue(head.startsWith("POST /v1/chat/completions HTTP/1.1\r\n"), head);
        assertTrue(head.contains("\r\nAuthorization: Bearer llmaas_0\r\n") && head.contains("\r\nX-Llmaas-App: mail\r\n"), head);
        Map<String, Object> asked = Json.readMap(read.get(0)[1]);
        assertEquals(Arrays.asList(8L, true), Arrays.asList(asked.get("max_tokens"), asked.get("stream")));
        assertEquals("inbox", Reply.map(asked, "llmaas").get("context"));
    }

    @Test
    void cancellingClosesTheConnection() throws Exception {
        FakeDaemon.Talk talk =
                peer -> {
                    request(peer);
                    say(peer, "HTTP/1.1 200 OK\r\n\r\n" + piece("begun"));
                    peer.readsNoMore();
                };
        ExecutorService executor = Executors.newSingleThreadExecutor();
        try (FakeDaemon daemon = new FakeDaemon(talk, talk);
                Client client = client(daemon, 0)) {
            Answer answer = ask(client);
            assertEquals("begun", answer.next());
            executor.submit(answer::cancel);
            assertThrows(LlmaasException.Cancelled.class, answer::done);
            try (Answer closed = ask(client)) {
                closed.next();
            }
        } finally {
            executor.shutdownNow();
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"", "data: {\"choices\":[]}\n\n", "data: {\"cho"})
    void anAnswerThatDoesNotEndIsLost(String rest) throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(streaming(piece("begun") + rest));
                Client client = client(daemon, RETRY_MS);
                Answer answer = ask(client)) {
            assertEquals("begun", answer.next());
            LlmaasException error = assertThrows(LlmaasException.class, answer::hasNext);
            assertTrue(error instanceof LlmaasException.NotServing || rest.endsWith("cho"), error.code());
        }
    }

    @Test
    void anAnswerMayFailOnItsWay() throws IOException {
        String error = "data: {\"error\":{\"message\":\"the model failed\",\"code\":\"engine_failed\"}}\n\n";
        try (FakeDaemon daemon = new FakeDaemon(streaming(piece("begun") + error));
                Client client = client(daemon, 0);
                Answer answer = ask(client)) {
            assertEquals("engine_failed", assertThrows(LlmaasException.class, answer::done).code());
            assertEquals("begun", answer.text());
        }
    }

    @ParameterizedTest
    @CsvSource({
        "401 Unauthorized, '', bad_token, BadToken",
        "404 Not Found, <html>, unknown_context, UnknownContext",
        "400 Bad Request, '{\"error\":{\"code\":\"context_length_exceeded\"}}', context_too_long, ContextTooLong",
        "400 Bad Request, '{\"error\":{\"code\":\"of_tomorrow\"}}', of_tomorrow, LlmaasException",
        "500 Oops, '{\"error\":7}', internal, LlmaasException",
        "429 Too Many Requests, '{\"error\":{\"code\":\"rate_limit_exceeded\"}}', busy, Busy"
    })
    void statusesAndCodesAreErrorsOfTheirClasses(String status, String body, String code, String name) throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(answering(status, body));
                Client client = client(daemon, 0)) {
            LlmaasException error = assertThrows(LlmaasException.class, () -> client.show("inbox"));
            assertEquals(Arrays.asList(code, name), Arrays.asList(error.code(), error.getClass().getSimpleName()));
        }
    }

    @Test
    void whatIsBusyOrStopsIsAskedAgain() throws IOException {
        FakeDaemon.Talk hangsUp = HttpClientTest::request;
        String stops = "{\"error\":{\"code\":\"shutting_down\"}}";
        String shown = "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}]}";
        try (FakeDaemon daemon =
                        new FakeDaemon(
                                answering("429 Busy", "{}"),
                                answering("503 Stops", stops),
                                hangsUp,
                                answering("200 OK", shown));
                Client client = client(daemon, RETRY_MS)) {
            assertEquals("[user: \u00e9]", client.show("inbox").toString());
        }
    }

    @Test
    void aLostDeleteOrQuestionIsNotAskedAgain() throws IOException {
        FakeDaemon.Talk hangsUp = HttpClientTest::request;
        try (FakeDaemon daemon = new FakeDaemon(hangsUp, hangsUp);
                Client client = client(daemon, RETRY_MS)) {
            assertThrows(LlmaasException.NotServing.class, () -> client.delete("inbox"));
            assertThrows(LlmaasException.NotServing.class, () -> ask(client));
        }
    }

    @Test
    void aNameIsOneStepOfThePath() throws IOException {
        List<String> paths = Collections.synchronizedList(new ArrayList<>());
        FakeDaemon.Talk talk =
                peer -> {
                    paths.add(request(peer)[0].split(" ")[1]);
                    say(peer, response("200 OK", "{}"));
                };
        try (FakeDaemon daemon = new FakeDaemon(talk, talk);
                Client client = client(daemon, 0)) {
            client.show("../a b?c#d%e\r\nX: y");
            client.show("Gr\u00fc\u00dfe ~._-9");
        }
        assertEquals("/llmaas/contexts/..%2Fa%20b%3Fc%23d%25e%0D%0AX%3A%20y", paths.get(0));
        assertEquals("/llmaas/contexts/Gr%C3%BC%C3%9Fe%20~._-9", paths.get(1));
    }

    @ParameterizedTest
    @CsvSource(nullValues = "-", value = {"a b, -", "'a\r\nX: y', -", "'', -", "-, 'x y'", "-, 'x\r\nHost: y'"})
    void noHeaderIsWrittenByAName(String app, String token) {
        assertThrows(
                LlmaasException.BadRequest.class, () -> new HttpClient(Endpoint.tcp("127.0.0.1", 9), app, token, 0));
    }
}
