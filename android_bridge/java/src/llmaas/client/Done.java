package llmaas.client;

/** How an answer ended. */
public final class Done {
    private final String context;
    private final String reason;
    private final long nTokens;

    Done(String context, String reason, long nTokens) {
        this.context = context;
        this.reason = reason;
        this.nTokens = nTokens;
    }

    /** The context's id. */
    public String context() {
        return context;
    }

    /** "stop", "length" or "context_full"; "appended" where nothing was to be generated. */
    public String reason() {
        return reason;
    }

    /** Tokens of the context now. */
    public long nTokens() {
        return nTokens;
    }
}
