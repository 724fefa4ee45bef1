package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What a client of the wire protocol asks for, how it reads replies, and what it asks for again. */
@Timeout(60)
final class FrameClientTest {
    private static final long RETRY_MS = 30_000;
    private static final FakeDaemon.Talk HANGS_UP = peer -> peer.greet();

    private static Client client(FakeDaemon daemon, long retryMs) {
        return new FrameClient(daemon.endpoint, "test", null, retryMs);
    }

    private static Generation hello() {
        return Generation.of("hello").maxTokens(8).temperature(0);
    }

    private static Map<String, Object> info(String name) {
        Map<String, Object> info = FakeDaemon.result("");
        info.put("id", "c0ffee");
        info.put("name", name);
        return info;
    }

    private static Map<String, Object> message(String role, String content) {
        return new Message(role, content).map();
    }

    @Test
    void whatItSays() throws IOException {
        List<Map<String, Object>> read = Collections.synchronizedList(new ArrayList<>());
        FakeDaemon.Talk talk =
                peer -> {
                    read.add(peer.greet());
                    for (String op : new String[] {"create", "hint", "delete"}) {
                        Map<String, Object> request = peer.read(op);
                        read.add(request);
                        peer.done(request.get("id"), op.equals("create") ? info("inbox") : null);
                    }
                    peer.readsNoMore();
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = new FrameClient(daemon.endpoint, "mail", "llmaas_token", 0)) {
            assertEquals("a model", client.model());
            ContextInfo made = client.context("inbox", "Be brief.");
            assertEquals(Arrays.asList("c0ffee", "inbox", 9L), Arrays.asList(made.id(), made.name(), made.nTokens()));
            client.hint("inbox");
            client.delete("inbox");
        }
        assertEquals(Arrays.asList("mail", "llmaas_token", 1L), fields(read.get(0), "app", "token", "version"));
        assertEquals(Arrays.asList("inbox", "Be brief.", true), fields(read.get(1), "name", "system", "exist_ok"));
        assertEquals(Arrays.asList("inbox", "inbox"), Arrays.asList(read.get(2).get("context"), read.get(3).get("context")));
    }

    private static List<Object> fields(Map<String, Object> frame, String... keys) {
        List<Object> found = new ArrayList<>();
        for (String key : keys) {
            found.add(frame.get(key));
        }
        return found;
    }

    @Test
    void aContextThatComesInPagesIsWhole() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.greet();
                    Map<String, Object> first = peer.read("show");
                    Map<String, Object> page = FakeDaemon.result("");
                    page.put("messages", Arrays.asList(message("user", "one"), message("assistant", "begins ")));
                    peer.send("id", first.get("id"), "type", "done", "result", page, "next", "from here");
                    Map<String, Object> second = peer.read("show");
                    if (!"from here".equals(second.get("after"))) {
                        throw new AssertionError(second);
                    }
                    page.put("messages", Arrays.asList(message("assistant", "and ends"), message("user", "two")));
                    page.put("continues", true);
                    peer.done(second.get("id"), page);
                    peer.readsNoMore();
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = client(daemon, 0)) {
            assertEquals("[user: one, assistant: begins and ends, user: two]", client.show("inbox").toString());
        }
    }

    @Test
    void withoutADaemonItIsNotServing() throws IOException {
        int port;
        try (ServerSocket free = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            port = free.getLocalPort();
        }
        LlmaasException.NotServing error =
                assertThrows(
                        LlmaasException.NotServing.class,
                        () -> new FrameClient(Endpoint.tcp("127.0.0.1", port), "test", null, 0));
        assertTrue(error.retryable() && error.hint().contains("llmaas serve"));
    }

    @Test
    void aTokenThatIsRefusedIsNotTriedAgain() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.read("hello");
                    peer.failed(null, "bad_token");
                };
        try (FakeDaemon daemon = new FakeDaemon(talk)) {
            assertThrows(LlmaasException.BadToken.class, () -> client(daemon, RETRY_MS));
        }
    }

    @Test
    void anotherVersionIsRefused() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.read("hello");
                    peer.send("type", "hello", "version", 2);
                };
        try (FakeDaemon daemon = new FakeDaemon(talk)) {
            LlmaasException error = assertThrows(LlmaasException.class, () -> client(daemon, RETRY_MS));
            assertEquals("version_mismatch", error.code());
        }
    }

    @Test
    void aReplyToNoRequestEndsTheConnection() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.greet();
                    peer.read("hint");
                    peer.done(77L, null);
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = client(daemon, RETRY_MS)) {
            assertThrows(LlmaasException.Malformed.class, () -> client.hint("inbox"));
        }
    }

    // -- again

    @Test
    void afterALossTheNextRequestConnectsAgain() throws IOException {
        FakeDaemon.Talk second =
                peer -> {
                    peer.greet();
                    peer.done(peer.read("hint").get("id"), null);
                    peer.readsNoMore();
                };
        FakeDaemon.Talk first =
                peer -> {
                    peer.greet();
                    peer.read("hint");
                };
        try (FakeDaemon daemon = new FakeDaemon(first, second);
                Client client = client(daemon, 0)) {
            assertThrows(LlmaasException.NotServing.class, () -> client.hint("inbox"));
            client.hint("inbox");
        }
    }

    @Test
    void whatIsBusyIsAskedAgainAndWhatReadsAfterALossToo() throws IOException {
        FakeDaemon.Talk busy =
                peer -> {
                    peer.read("hello");
                    peer.failed(null, "busy", "retryable", true);
                };
        FakeDaemon.Talk serves =
                peer -> {
                    peer.greet();
                    peer.failed(peer.read("list").get("id"), "busy", "retryable", true);
                    peer.done(peer.read("list").get("id"), Arrays.asList(info("inbox")));
                    peer.readsNoMore();
                };
        try (FakeDaemon daemon = new FakeDaemon(busy, HANGS_UP, serves);
                Client client = client(daemon, RETRY_MS)) {
            assertEquals("inbox", client.contexts().get(0).name());
        }
    }

    @Test
    void aContextIsNotDeletedTwice() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.greet();
                    peer.read("delete");
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = client(daemon, RETRY_MS)) {
            assertThrows(LlmaasException.NotServing.class, () -> client.delete("inbox"));
        }
    }

    /** Is asked, says these pieces, and hangs up; gives the key of the request. */
    private static FakeDaemon.Talk cut(List<Object> keys, String... pieces) {
        return peer -> {
            peer.greet();
            Map<String, Object> request = peer.read("generate");
            keys.add(request.get("idempotency_key"));
            for (String piece : pieces) {
                peer.piece(request.get("id"), piece);
            }
        };
    }

    private static FakeDaemon.Talk whole(List<Object> keys, String... pieces) {
        return peer -> {
            cut(keys, pieces).with(peer);
            peer.done(peer.read.get(peer.read.size() - 1).get("id"), FakeDaemon.result("stop"));
            peer.readsNoMore();
        };
    }

    @Test
    void anAnswerGoesOnAfterALossAndIsToldOnce() throws IOException {
        List<Object> keys = Collections.synchronizedList(new ArrayList<>());
        try (FakeDaemon daemon =
                        new FakeDaemon(cut(keys, "one ", "two "), cut(keys), whole(keys, "one t", "wo ", "thr", "ee"));
                Client client = client(daemon, RETRY_MS);
                Answer answer = client.generate("inbox", hello())) {
            assertEquals("stop", answer.done().reason());
            assertEquals("one two three", answer.text());
        }
        assertEquals(3, keys.size());
        assertTrue(keys.get(0) instanceof String && Collections.frequency(keys, keys.get(0)) == 3, keys.toString());
    }

    @Test
    void anAnswerThatIsMadeAnewOtherwiseIsToldNoFurther() throws IOException {
        List<Object> keys = Collections.synchronizedList(new ArrayList<>());
        FakeDaemon.Talk other =
                peer -> {
                    cut(keys, "one 2").with(peer);
                    peer.read("cancel");
                    peer.readsNoMore();
                };
        try (FakeDaemon daemon = new FakeDaemon(cut(keys, "one two"), other);
                Client client = client(daemon, RETRY_MS);
                Answer answer = client.generate("inbox", hello())) {
            LlmaasException error = assertThrows(LlmaasException.class, answer::done);
            assertEquals("not_serving", error.code());
            assertEquals("one two", answer.text());
        }
    }

    @Test
    void withoutRetriesAnAnswerThatIsLostIsNotAskedAgain() throws IOException {
        List<Object> keys = Collections.synchronizedList(new ArrayList<>());
        try (FakeDaemon daemon = new FakeDaemon(cut(keys, "one "));
                Client client = client(daemon, 0);
                Answer answer = client.generate("inbox", hello())) {
            assertEquals("one ", answer.next());
            assertThrows(LlmaasException.NotServing.class, answer::hasNext);
            assertFalse(keys.isEmpty());
            assertNull(keys.get(0));
        }
    }

    @Test
    void aClientThatIsClosedAsksNothing() throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(peer -> {
            peer.greet();
            peer.readsNoMore();
        })) {
            Client client = client(daemon, RETRY_MS);
            client.close();
            assertThrows(LlmaasException.NotServing.class, () -> client.hint("inbox"));
        }
    }
}
