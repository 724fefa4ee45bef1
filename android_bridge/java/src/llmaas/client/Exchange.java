package llmaas.client;

import java.util.ArrayDeque;
import java.util.Map;

/**
 * One request on one connection, and what came back of it.
 *
 * <p>Law: it ends once, by a reply or by the loss of its connection. Filled by the thread that reads, emptied by the one
 * that asked.
 */
final class Exchange {
    private static final int MOST_UNREAD = 16 << 20;
    final long id;
    private final ArrayDeque<String> pieces = new ArrayDeque<>();
    private long unread;
    private Map<String, Object> done;
    private LlmaasException error;

    Exchange(long id) {
        this.id = id;
    }

    synchronized void piece(String text) {
        unread += text.length();
        if (unread > MOST_UNREAD) {
            throw LlmaasException.tooLarge("what was not taken of an answer", unread, MOST_UNREAD);
        }
        pieces.add(text);
        notifyAll();
    }

    synchronized void done(Map<String, Object> frame) {
        done = frame;
        notifyAll();
    }

    synchronized void failed(LlmaasException why) {
        if (done == null && error == null) {
            error = why;
        }
        notifyAll();
    }

    /** The next piece; null at the end. Throws what it failed with. */
    synchronized String next() {
        while (pieces.isEmpty() && done == null && error == null) {
            await(0);
        }
        if (!pieces.isEmpty()) {
            unread -= pieces.peek().length();
            return pieces.poll();
        }
        if (error != null) {
            throw error.again();
        }
        return null;
    }

    /** The frame that ended it. Throws what it failed with. */
    synchronized Map<String, Object> end() {
        while (done == null && error == null) {
            await(0);
        }
        if (error != null) {
            throw error.again();
        }
        return done;
    }

    /** The same; a NotServing if it does not come within {@code ms}. */
    synchronized Map<String, Object> end(long ms, String place) {
        long late = System.nanoTime() + ms * 1_000_000;
        while (done == null && error == null) {
            long left = (late - System.nanoTime()) / 1_000_000;
            if (left <= 0) {
                throw LlmaasException.lost(place, "it does not answer in time");
            }
            await(left);
        }
        return end();
    }

    private void await(long ms) {
        try {
            wait(ms);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new LlmaasException.Cancelled("the thread was interrupted", "Ask again.");
        }
    }
}
