package llmaas.client;

/**
 * What went wrong with a request. Programs go by its class, or by {@link #code}; people read the message and the {@link
 * #hint}. Codes are those of the wire protocol; one that this client does not know is a plain LlmaasException.
 */
public class LlmaasException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private static final String SAME_PROTOCOL = "Use a client and a daemon that speak the same protocol.";

    /** Whose fault it is. */
    public enum Fault {
        /** The request cannot work as it stands. */
        CALLER,
        /** A fault of llmaas. */
        SERVICE,
        /** Disk, memory, files or the model: an operator can mend it. */
        MACHINE
    }

    private final String code;
    private final String hint;
    private final Fault fault;
    private final boolean retryable;
    private long nGenerated;
    private long nTokens = -1;

    LlmaasException(String code, String message, String hint, Fault fault, boolean retryable) {
        super(message);
        this.code = code;
        this.hint = hint;
        this.fault = fault;
        this.retryable = retryable;
    }

    /** Names the error; stable. */
    public String code() {
        return code;
    }

    /** What to do. */
    public String hint() {
        return hint;
    }

    public Fault fault() {
        return fault;
    }

    /** Whether the same request may succeed later. */
    public boolean retryable() {
        return retryable;
    }

    /** Tokens of the answer that were kept. */
    public long nGenerated() {
        return nGenerated;
    }

    /** Tokens that the context has now; -1 if that was not said. */
    public long nTokens() {
        return nTokens;
    }

    /** No daemon answers, or the connection was lost. */
    public static class NotServing extends LlmaasException {
        private static final long serialVersionUID = 1L;

        NotServing(String message, String hint) {
            super("not_serving", message, hint, Fault.MACHINE, true);
        }
    }

    /** Another user serves in the daemon's place. Nothing was sent. */
    public static class NotTrusted extends LlmaasException {
        private static final long serialVersionUID = 1L;

        NotTrusted(String message, String hint) {
            super("not_trusted", message, hint, Fault.MACHINE, false);
        }
    }

    /** The daemon has no room for the request now. */
    public static class Busy extends LlmaasException {
        private static final long serialVersionUID = 1L;

        Busy(String code, String message, String hint) {
            super(code, message, hint, Fault.SERVICE, true);
        }
    }

    /** The app has a token that was not given, or the token is no app's. */
    public static class BadToken extends LlmaasException {
        private static final long serialVersionUID = 1L;

        BadToken(String code, String message, String hint) {
            super(code, message, hint, Fault.CALLER, false);
        }
    }

    /** A field is missing, unknown, or out of range. */
    public static class BadRequest extends LlmaasException {
        private static final long serialVersionUID = 1L;

        BadRequest(String code, String message, String hint) {
            super(code, message, hint, Fault.CALLER, false);
        }
    }

    /** The app has no such context. */
    public static class UnknownContext extends LlmaasException {
        private static final long serialVersionUID = 1L;

        UnknownContext(String code, String message, String hint) {
            super(code, message, hint, Fault.CALLER, false);
        }
    }

    /** The text does not fit in the context. */
    public static class ContextTooLong extends LlmaasException {
        private static final long serialVersionUID = 1L;

        ContextTooLong(String code, String message, String hint) {
            super(code, message, hint, Fault.CALLER, false);
        }
    }

    /** The request was cancelled. What was told of its answer is part of the context. */
    public static class Cancelled extends LlmaasException {
        private static final long serialVersionUID = 1L;

        Cancelled(String message, String hint) {
            super("cancelled", message, hint, Fault.CALLER, false);
        }
    }

    /** What came, to this client or to the daemon, cannot be read, or is larger than what is read. */
    public static class Malformed extends LlmaasException {
        private static final long serialVersionUID = 1L;

        Malformed(String code, String message, String hint) {
            super(code, message, hint, Fault.CALLER, false);
        }
    }

    static NotServing lost(String place, String why) {
        return new NotServing(
                "no daemon answers at " + place + ", or the connection was lost: " + why,
                "Start it with 'llmaas serve', or give another place.");
    }

    static Malformed malformed(String why) {
        return new Malformed("malformed_frame", "the daemon sent what cannot be read: " + why, SAME_PROTOCOL);
    }

    static Malformed tooLarge(String what, long size, long most) {
        String message = what + " has " + size + " bytes; at most " + most + " are allowed";
        return new Malformed("frame_too_large", message, SAME_PROTOCOL);
    }

    static Cancelled cancelled() {
        return new Cancelled("the request was cancelled", "What was told of the answer is part of the context.");
    }

    /** The error with this code, as its class. */
    static LlmaasException of(String code, String message, String hint, Fault fault, boolean retryable) {
        switch (code) {
            case "not_serving":
                return new NotServing(message, hint);
            case "not_trusted":
                return new NotTrusted(message, hint);
            case "busy":
                return new Busy(code, message, hint);
            case "bad_token":
                return new BadToken(code, message, hint);
            case "bad_request":
                return new BadRequest(code, message, hint);
            case "unknown_context":
                return new UnknownContext(code, message, hint);
            case "context_too_long":
                return new ContextTooLong(code, message, hint);
            case "cancelled":
                return new Cancelled(message, hint);
            case "malformed_frame":
            case "frame_too_large":
                return new Malformed(code, message, hint);
            default:
                return new LlmaasException(code, message, hint, fault, retryable);
        }
    }

    /** The same error, anew: the stack trace is that of the thread that asks. */
    LlmaasException again() {
        LlmaasException made = of(code, getMessage(), hint, fault, retryable).keeping(nGenerated, nTokens);
        made.initCause(this);
        return made;
    }

    LlmaasException keeping(long generated, long tokens) {
        nGenerated = generated;
        nTokens = tokens;
        return this;
    }
}
