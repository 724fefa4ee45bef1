package llmaas.client;

/** Is told an answer as it comes, on the executor's thread. {@link #onDone} or {@link #onError} is the last call. */
public interface AnswerListener {
    /** More text: whole characters. */
    void onText(String text);

    void onDone(Done done);

    /** The answer failed, or was cancelled ({@link LlmaasException.Cancelled}). */
    void onError(LlmaasException error);
}
