package llmaas.client;

import java.util.List;
import java.util.concurrent.Executor;

/**
 * A client of the daemon, for one app. Several threads may use it at once. All methods block, and throw {@link
 * LlmaasException}.
 *
 * <p>{@link FrameClient} speaks the wire protocol over a Unix socket; {@link HttpClient} speaks HTTP, which the daemon also
 * serves over TCP: Android apps of other uids than the daemon's cannot reach its Unix socket.
 */
public interface Client extends AutoCloseable {
    /** The name of the model that is served. */
    String model();

    /** The context of this name; it is made, with this system message (or null), if there is none. */
    ContextInfo context(String name, String system);

    /** Add to a context what the generation says, and answer. */
    Answer generate(String context, Generation generation);

    /**
     * The same by callbacks, on a thread of {@code executor}. The answer that is returned is for {@link Answer#cancel}. What
     * {@code onText} throws cancels the answer, and goes on to the executor.
     */
    default Answer generate(String context, Generation generation, AnswerListener listener, Executor executor) {
        Answer answer = generate(context, generation);
        executor.execute(
                () -> {
                    Done done;
                    try {
                        while (answer.hasNext()) {
                            listener.onText(answer.next());
                        }
                        done = answer.done();
                    } catch (LlmaasException e) {
                        listener.onError(e);
                        return;
                    } catch (RuntimeException | Error e) {
                        answer.close();
                        throw e;
                    }
                    listener.onDone(done);
                });
        return answer;
    }

    /** All messages of a context. */
    List<Message> show(String context);

    /** The app's contexts. */
    List<ContextInfo> contexts();

    /** Say that a context will be used soon, for example because the app comes to the foreground. */
    void hint(String context);

    void delete(String context);

    /** Close the connection; what still runs on it is cancelled. */
    @Override
    void close();
}
