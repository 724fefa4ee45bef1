package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.SocketException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** An answer as it comes from a daemon: by iteration and by callbacks, cancelled, closed, and lost. */
@Timeout(60)
final class AnswerTest {
    private final ExecutorService executor = Executors.newSingleThreadExecutor();

    @AfterEach
    void stop() {
        executor.shutdownNow();
    }

    private static Client client(FakeDaemon daemon) {
        return new FrameClient(daemon.endpoint, "test", null, 0);
    }

    private static Answer ask(Client client) {
        return client.generate("inbox", Generation.of("hello").maxTokens(8));
    }

    /** Says these pieces, and ends. */
    private static FakeDaemon.Talk saying(String... pieces) {
        return peer -> {
            peer.greet();
            Object id = peer.read("generate").get("id");
            for (String piece : pieces) {
                peer.piece(id, piece);
            }
            peer.done(id, FakeDaemon.result("stop"));
            peer.readsNoMore();
        };
    }

    /** Says one piece, and goes on only to be cancelled. */
    private static FakeDaemon.Talk cancelled() {
        return peer -> {
            peer.greet();
            Object id = peer.read("generate").get("id");
            peer.piece(id, "a long ");
            Map<String, Object> cancel = peer.read("cancel");
            if (!id.equals(cancel.get("request")) || id.equals(cancel.get("id"))) {
                throw new AssertionError("what is cancelled: " + cancel);
            }
            try {
                peer.piece(id, "story");
                peer.failed(id, "cancelled", "n_generated", 2);
                peer.done(cancel.get("id"), null);
                peer.readsNoMore();
            } catch (SocketException e) {
                // a client that waits for nothing more may have gone
            }
        };
    }

    @Test
    void byIteration() throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(saying("Gr\u00fc", "", "\u00dfe ", "\ud83d\ude00"));
                Client client = client(daemon);
                Answer answer = ask(client)) {
            assertEquals("", answer.text());
            assertTrue(answer.hasNext() && answer.hasNext(), "asking takes nothing");
            assertEquals("Gr\u00fc", answer.next());
            assertEquals("Gr\u00fc", answer.text());
            List<String> rest = new ArrayList<>();
            for (String piece : answer) {
                rest.add(piece);
            }
            assertEquals(Arrays.asList("\u00dfe ", "\ud83d\ude00"), rest, "an empty piece is none");
            assertFalse(answer.hasNext());
            assertThrows(NoSuchElementException.class, answer::next);
            assertEquals("Gr\u00fc\u00dfe \ud83d\ude00", answer.text());
            Done done = answer.done();
            assertEquals(Arrays.asList("c0ffee", "stop", 9L), Arrays.asList(done.context(), done.reason(), done.nTokens()));
            assertSame(done, answer.done());
        }
    }

    @Test
    void doneTakesWhatIsLeft() throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(saying("one ", "two"));
                Client client = client(daemon);
                Answer answer = ask(client)) {
            assertEquals("stop", answer.done().reason());
            assertEquals("one two", answer.text());
        }
    }

    @Test
    void cancelledFromAnotherThreadWhileItWaits() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(cancelled());
                Client client = client(daemon);
                Answer answer = ask(client)) {
            assertEquals("a long ", answer.next());
            executor.submit(answer::cancel);
            assertEquals("story", answer.next(), "what was told before it ended counts");
            LlmaasException.Cancelled error = assertThrows(LlmaasException.Cancelled.class, answer::hasNext);
            assertEquals(2, error.nGenerated());
            assertEquals("a long story", answer.text());
            assertThrows(LlmaasException.Cancelled.class, answer::done);
            answer.cancel(); // a second time says nothing
        }
    }

    @Test
    void closedBeforeItsEnd() throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(cancelled());
                Client client = client(daemon)) {
            Answer answer = ask(client);
            answer.next();
            answer.close();
            answer.close();
            assertThrows(LlmaasException.Cancelled.class, answer::done);
        }
    }

    @Test
    void closedAfterItsEndSaysNothing() throws IOException {
        // The daemon wants nothing more from it.
        try (FakeDaemon daemon = new FakeDaemon(saying("all"));
                Client client = client(daemon)) {
            Answer answer = ask(client);
            answer.done();
            answer.close();
        }
    }

    /** Keeps what it is told, and on which thread. */
    private static class Told implements AnswerListener {
        final List<String> calls = Collections.synchronizedList(new ArrayList<>());
        final CountDownLatch begun = new CountDownLatch(1);
        final CountDownLatch ended = new CountDownLatch(1);
        volatile Thread thread;

        @Override
        public void onText(String text) {
            thread = Thread.currentThread();
            calls.add("text " + text);
            begun.countDown();
        }

        @Override
        public void onDone(Done done) {
            calls.add("done " + done.reason());
            ended.countDown();
        }

        @Override
        public void onError(LlmaasException error) {
            calls.add("error " + error.code());
            ended.countDown();
        }
    }

    @Test
    void byCallbacks() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(saying("one ", "two"));
                Client client = client(daemon)) {
            Told told = new Told();
            client.generate("inbox", Generation.of("hello"), told, executor);
            assertTrue(told.ended.await(30, TimeUnit.SECONDS));
            assertEquals(Arrays.asList("text one ", "text two", "done stop"), told.calls);
            assertNotEquals(Thread.currentThread(), told.thread);
        }
    }

    @Test
    void cancelledByCallbacks() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(cancelled());
                Client client = client(daemon)) {
            Told told = new Told();
            Answer answer = client.generate("inbox", Generation.of("hello"), told, executor);
            assertTrue(told.begun.await(30, TimeUnit.SECONDS));
            answer.cancel();
            assertTrue(told.ended.await(30, TimeUnit.SECONDS));
            assertEquals(Arrays.asList("text a long ", "text story", "error cancelled"), told.calls);
        }
    }

    /** Nobody else would end the answer: its daemon must not compute to the end for nobody. */
    @Test
    void aListenerThatFailsCancels() throws Exception {
        try (FakeDaemon daemon = new FakeDaemon(cancelled());
                Client client = client(daemon)) {
            Told told =
                    new Told() {
                        @Override
                        public void onText(String text) {
                            throw new IllegalStateException("a bug of the app");
                        }
                    };
            List<Throwable> thrown = Collections.synchronizedList(new ArrayList<>());
            CountDownLatch over = new CountDownLatch(1);
            client.generate(
                    "inbox",
                    Generation.of("hello"),
                    told,
                    task ->
                            executor.execute(
                                    () -> {
                                        try {
                                            task.run();
                                        } catch (IllegalStateException e) {
                                            thrown.add(e);
                                        }
                                        over.countDown();
                                    }));
            assertTrue(over.await(30, TimeUnit.SECONDS));
            assertEquals("a bug of the app", thrown.get(0).getMessage(), "the executor is told of it");
            assertEquals(Collections.emptyList(), told.calls);
        }
    }

    @Test
    void twoOnOneConnectionAreNotMixed() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.greet();
                    Object first = peer.read("generate").get("id");
                    Object second = peer.read("generate").get("id");
                    for (int i = 0; i < 3; i++) {
                        peer.piece(second, "b" + i);
                        peer.piece(first, "a" + i);
                    }
                    peer.failed(second, "context_too_long", "n_tokens", 7);
                    peer.piece(first, "!");
                    peer.done(first, FakeDaemon.result("length"));
                    peer.readsNoMore();
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = client(daemon);
                Answer first = ask(client)) {
            Answer second = ask(client);
            LlmaasException.ContextTooLong error = assertThrows(LlmaasException.ContextTooLong.class, second::done);
            assertEquals("b0b1b2", second.text());
            assertEquals(Arrays.asList(7L, "do something"), Arrays.asList(error.nTokens(), error.hint()));
            assertEquals("length", first.done().reason());
            assertEquals("a0a1a2!", first.text());
        }
    }

    @Test
    void aClientThatIsClosedEndsItsAnswers() throws IOException {
        FakeDaemon.Talk talk =
                peer -> {
                    peer.greet();
                    peer.piece(peer.read("generate").get("id"), "begun");
                    peer.readsNoMore();
                };
        try (FakeDaemon daemon = new FakeDaemon(talk);
                Client client = client(daemon)) {
            Answer answer = ask(client);
            answer.next();
            executor.submit(client::close);
            assertThrows(LlmaasException.NotServing.class, answer::done);
            assertDoesNotThrow(answer::close);
        }
    }

    @Test
    void aThreadThatIsInterruptedGivesUp() throws IOException {
        try (FakeDaemon daemon = new FakeDaemon(cancelled());
                Client client = client(daemon)) {
            Answer answer = ask(client);
            answer.next();
            Thread.currentThread().interrupt();
            assertThrows(LlmaasException.Cancelled.class, answer::hasNext);
            assertTrue(Thread.interrupted());
            answer.close();
            assertThrows(LlmaasException.Cancelled.class, answer::done);
        }
    }
}
