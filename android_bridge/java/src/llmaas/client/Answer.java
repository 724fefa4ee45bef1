package llmaas.client;

import java.util.Iterator;
import java.util.NoSuchElementException;

/**
 * An answer as it comes: pieces of text, whole characters each. Iterate over it on one thread; {@link #cancel} may be
 * called from any. Iteration throws the LlmaasException that ended the answer.
 *
 * <pre>{@code
 * try (Answer answer = client.generate("inbox", Generation.of("Which folder?"))) {
 *     for (String text : answer) System.out.print(text);
 *     System.out.println(answer.done().reason());
 * }
 * }</pre>
 */
public abstract class Answer implements Iterable<String>, Iterator<String>, AutoCloseable {
    private final StringBuilder text = new StringBuilder();
    private String ready;
    private Done done;

    /** The next piece, or null at the end, when {@link #end} was called. */
    abstract String more();

    /** End the answer. What was told of it stays in the context; iteration ends with {@link LlmaasException.Cancelled}. */
    public abstract void cancel();

    final void end(Done how) {
        done = how;
    }

    @Override
    public final boolean hasNext() {
        while (ready == null && done == null) {
            String piece = more();
            if (piece != null && !piece.isEmpty()) {
                ready = piece;
            }
        }
        return ready != null;
    }

    @Override
    public final String next() {
        if (!hasNext()) {
            throw new NoSuchElementException();
        }
        String piece = ready;
        ready = null;
        text.append(piece);
        return piece;
    }

    /** The text that was taken so far. */
    public final String text() {
        return text.toString();
    }

    /** How it ended; waits for that, and takes the pieces that are left. */
    public final Done done() {
        while (hasNext()) {
            next();
        }
        return done;
    }

    @Override
    public final Iterator<String> iterator() {
        return this;
    }

    /** Cancels the answer, if it has not ended. */
    @Override
    public final void close() {
        if (done == null) {
            cancel();
        }
    }
}
