package llmaas.client;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/**
 * A client that speaks the wire protocol.
 *
 * <p>With {@code retryMs} it connects again after a loss, and makes again what may be made again: requests that only read,
 * {@link #context}, and {@link #generate}, which the daemon knows again by a key; an answer then goes on from what was told
 * of it. What the daemon refuses as busy is asked for again, whatever it is.
 */
public final class FrameClient implements Client {
    private static final int MOST_TRIES = 8;
    private static final int TIMEOUT_MS = 10_000;
    private final Endpoint endpoint;
    private final Map<String, Object> hello = new LinkedHashMap<>();
    private final long retryMs;
    private Connection connection;
    private volatile boolean closed;

    /**
     * @param app the app whose contexts these are; null: the token's
     * @param token the app's token, or null
     * @param retryMs how long to try again; 0: not at all
     */
    public FrameClient(Endpoint endpoint, String app, String token, long retryMs) {
        this.endpoint = endpoint;
        this.retryMs = retryMs;
        hello.put("op", "hello");
        hello.put("version", 1);
        hello.put("client", "llmaas-java/0.1.0");
        if (app != null) {
            hello.put("app", app);
        }
        if (token != null) {
            hello.put("token", token);
        }
        connection(new Retries(retryMs));
    }

    /** The connection; a new one if the last is over. */
    private synchronized Connection connection(Retries retries) {
        while (connection == null || connection.isOver()) {
            if (closed) {
                throw LlmaasException.lost(endpoint.toString(), "this client was closed");
            }
            try {
                connection = new Connection(endpoint, hello, TIMEOUT_MS);
            } catch (LlmaasException e) {
                if (!(isLoss(e) || e instanceof LlmaasException.Busy) || !retries.pause()) {
                    throw e;
                }
            }
        }
        return connection;
    }

    private static boolean isLoss(LlmaasException e) {
        return e instanceof LlmaasException.NotServing || e.code().equals("shutting_down");
    }

    private static boolean isRefusal(LlmaasException e) {
        return e instanceof LlmaasException.Busy && e.nTokens() < 0;
    }

    private static Map<String, Object> request(String op, String key, Object value) {
        Map<String, Object> fields = new LinkedHashMap<>();
        fields.put("op", op);
        if (key != null) {
            fields.put(key, value);
        }
        return fields;
    }

    /** The frame that ends a request; made again where that can help. */
    private Map<String, Object> ask(Map<String, Object> request, boolean repeatable) {
        Retries retries = new Retries(retryMs);
        for (int tries = 0; ; tries++) {
            Connection used = connection(retries);
            try {
                return used.start(request).end();
            } catch (LlmaasException e) {
                again(e, used, repeatable && tries < MOST_TRIES, retries);
            }
        }
    }

    /** Return when a request is to be made again; else throw why it failed. */
    private void again(LlmaasException e, Connection used, boolean repeatable, Retries retries) {
        if (isLoss(e)) {
            used.lose(e);
        }
        boolean may = retryMs > 0 && (isRefusal(e) || isLoss(e) && repeatable);
        if (isLoss(e)) {
            retries.renew();
        }
        if (!may || !retries.pause()) {
            throw e;
        }
    }

    @Override
    public String model() {
        return Reply.text(connection(new Retries(retryMs)).hello(), "model");
    }

    @Override
    public ContextInfo context(String name, String system) {
        Map<String, Object> create = request("create", "name", name);
        if (system != null) {
            create.put("system", system);
        }
        create.put("exist_ok", true);
        return ContextInfo.of(Reply.map(ask(create, true), "result"));
    }

    @Override
    public Answer generate(String context, Generation generation) {
        Map<String, Object> generate = request("generate", "context", context);
        List<Object> messages = new ArrayList<>();
        for (Message message : generation.messages()) {
            messages.add(message.map());
        }
        if (!messages.isEmpty()) {
            generate.put("messages", messages);
        }
        generate.putAll(generation.fields());
        if (retryMs > 0) {
            generate.put("idempotency_key", UUID.randomUUID().toString());
        }
        return new FrameAnswer(generate);
    }

    @Override
    public List<Message> show(String context) {
        List<Message> messages = new ArrayList<>();
        for (Map<String, Object> page : pages(request("show", "context", context))) {
            Map<String, Object> result = Reply.map(page, "result");
            boolean continues = Boolean.TRUE.equals(result.get("continues")) && !messages.isEmpty();
            for (Map<String, Object> each : Reply.maps(result.get("messages"))) {
                Message message = Message.of(each);
                if (continues) {
                    Message begun = messages.remove(messages.size() - 1);
                    message = new Message(begun.role(), begun.content() + message.content());
                    continues = false;
                }
                messages.add(message);
            }
        }
        return messages;
    }

    @Override
    public List<ContextInfo> contexts() {
        List<ContextInfo> found = new ArrayList<>();
        for (Map<String, Object> page : pages(request("list", null, null))) {
            for (Map<String, Object> each : Reply.maps(page.get("result"))) {
                found.add(ContextInfo.of(each));
            }
        }
        return found;
    }

    private List<Map<String, Object>> pages(Map<String, Object> request) {
        List<Map<String, Object>> pages = new ArrayList<>();
        Object next;
        do {
            Map<String, Object> page = ask(request, true);
            pages.add(page);
            next = page.get("next");
            request.put("after", next);
        } while (next instanceof String);
        return pages;
    }

    @Override
    public void hint(String context) {
        ask(request("hint", "context", context), true);
    }

    @Override
    public void delete(String context) {
        ask(request("delete", "context", context), false);
    }

    @Override
    public void close() {
        closed = true;
        synchronized (this) {
            if (connection != null) {
                connection.lose(LlmaasException.lost(endpoint.toString(), "this client was closed"));
            }
        }
    }

    /** An answer, also over several connections: what is told again is compared with what was told, and left out. */
    private final class FrameAnswer extends Answer {
        private final Map<String, Object> request;
        private final Retries retries = new Retries(retryMs);
        private final StringBuilder told = new StringBuilder();
        private int again;
        private int tries;
        private Connection used;
        private Exchange exchange;
        private boolean cancelled;

        FrameAnswer(Map<String, Object> request) {
            this.request = request;
            start();
        }

        private void start() {
            Connection next = connection(retries);
            synchronized (this) {
                again = 0;
                used = next;
                exchange = next.start(request);
                if (cancelled) {
                    sendCancel();
                }
            }
        }

        private synchronized boolean isCancelled() {
            return cancelled;
        }

        @Override
        String more() {
            try {
                String piece = exchange.next();
                if (piece != null) {
                    return rest(piece);
                }
                if (again < told.length()) {
                    throw differs();
                }
                Map<String, Object> result = Reply.map(exchange.end(), "result");
                String context = Reply.text(result, "context");
                end(new Done(context, Reply.text(result, "reason"), Reply.number(result, "n_tokens")));
                return null;
            } catch (LlmaasException e) {
                boolean untold = told.length() == 0 || isLoss(e);
                again(e, used, untold && !isCancelled() && ++tries <= MOST_TRIES, retries);
                start();
                return "";
            }
        }

        /** What of a piece is new. */
        private String rest(String piece) {
            int known = Math.min(piece.length(), told.length() - again);
            if (!told.substring(again, again + known).equals(piece.substring(0, known))) {
                throw differs();
            }
            again += known;
            String rest = piece.substring(known);
            if (retryMs > 0) {
                told.append(rest);
                again += rest.length();
            }
            return rest;
        }

        private LlmaasException differs() {
            cancel();
            return new LlmaasException(
                    "not_serving",
                    "the connection was lost, and the answer that was made anew is not the one that had begun",
                    "It is stored: show the context.",
                    LlmaasException.Fault.MACHINE,
                    true);
        }

        @Override
        public synchronized void cancel() {
            if (!cancelled) {
                cancelled = true;
                sendCancel();
            }
        }

        private void sendCancel() {
            try {
                used.start(FrameClient.request("cancel", "request", exchange.id));
            } catch (LlmaasException e) {
                // Then the connection is lost, and the request with it.
            }
        }
    }
}
