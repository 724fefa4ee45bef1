package llmaas.client;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * A client that speaks HTTP, with a connection for each request.
 *
 * <p>With {@code retryMs} it tries again while no daemon answers or it is busy. An answer that is lost in the middle is
 * {@link LlmaasException.NotServing}, since over HTTP the daemon cannot know a request again: {@link #show} says what is
 * stored.
 */
public final class HttpClient implements Client {
    private static final int TIMEOUT_MS = 10_000;
    /** What HTTP calls otherwise than the wire protocol. */
    private static final Map<String, String> CODES = new HashMap<>();

    private static final Map<Integer, String> BY_STATUS = new HashMap<>();

    static {
        CODES.put("context_length_exceeded", "context_too_long");
        CODES.put("insufficient_quota", "quota");
        CODES.put("rate_limit_exceeded", "busy");
        CODES.put("invalid_api_key", "bad_token");
        BY_STATUS.put(401, "bad_token");
        BY_STATUS.put(403, "forbidden");
        BY_STATUS.put(404, "unknown_context");
        BY_STATUS.put(429, "busy");
    }

    private final Endpoint endpoint;
    private final String headers;
    private final long retryMs;
    private volatile boolean closed;

    /**
     * @param app the app's name, which counts over a Unix socket only; null: the token's, or "http"
     * @param token the app's token, or null
     * @param retryMs how long to try again; 0: not at all
     */
    public HttpClient(Endpoint endpoint, String app, String token, long retryMs) {
        if (token != null && !token.matches("\\w+") || app != null && !app.matches("[A-Za-z0-9._-]{1,64}")) {
            String hint = "A token is what 'llmaas app add' printed; an app's name has A-Z a-z 0-9 . _ -.";
            throw new LlmaasException.BadRequest("bad_request", "the token or the app's name cannot be one", hint);
        }
        this.endpoint = endpoint;
        this.retryMs = retryMs;
        headers =
                "Host: localhost\r\nConnection: close\r\n"
                        + (app == null ? "" : "X-Llmaas-App: " + app + "\r\n")
                        + (token == null ? "" : "Authorization: Bearer " + token + "\r\n");
    }

    /** A good response. {@code repeatable}: it may be asked for again also if the connection was lost. */
    private HttpResponse ask(String method, String path, Map<String, Object> request, boolean repeatable) {
        Retries retries = new Retries(retryMs);
        byte[] body = request == null ? new byte[0] : Msgpack.utf8(Json.write(request));
        String kind = request == null ? "" : "Content-Type: application/json\r\nContent-Length: " + body.length + "\r\n";
        String head = method + " " + path + " HTTP/1.1\r\n" + headers + kind + "\r\n";
        while (true) {
            if (closed) {
                throw lost("this client was closed");
            }
            Channel channel;
            try {
                channel = endpoint.open(TIMEOUT_MS);
            } catch (IOException e) {
                if (retries.pause()) {
                    continue;
                }
                throw lost(e.getMessage());
            }
            try {
                return askOnce(channel, head, body);
            } catch (LlmaasException e) {
                boolean refused = e instanceof LlmaasException.Busy || e.code().equals("shutting_down");
                boolean lost = e instanceof LlmaasException.NotServing;
                if (!(refused || lost && repeatable) || !retries.pause()) {
                    throw e;
                }
            }
        }
    }

    private LlmaasException lost(String why) {
        return LlmaasException.lost(endpoint.toString(), String.valueOf(why));
    }

    private HttpResponse askOnce(Channel channel, String head, byte[] body) {
        boolean isGood = false;
        try {
            HttpResponse response = new HttpResponse(channel, head, body);
            isGood = response.status() == 200;
            if (isGood) {
                return response;
            }
            throw error(response.body(), response.status());
        } catch (IOException e) {
            throw lost(e.getMessage());
        } finally {
            if (!isGood) {
                try {
                    channel.close();
                } catch (IOException e) {
                    // It is of no use any more in any case.
                }
            }
        }
    }

    private Map<String, Object> read(String method, String path, Map<String, Object> request) {
        try (HttpResponse response = ask(method, path, request, !method.equals("DELETE"))) {
            return Json.readMap(response.body());
        } catch (IOException e) {
            throw lost(e.getMessage());
        }
    }

    /** The error that a body tells of. */
    private static LlmaasException error(String body, int status) {
        Map<String, Object> told;
        try {
            told = Json.readMap(body);
        } catch (LlmaasException e) {
            told = Collections.emptyMap();
        }
        return error(told, status);
    }

    private static LlmaasException error(Map<String, Object> body, int status) {
        Map<String, Object> told = Reply.map(body, "error");
        String code = Reply.text(told, "code");
        if (code.isEmpty()) {
            code = BY_STATUS.getOrDefault(status, status >= 500 ? "internal" : "bad_request");
        }
        code = CODES.getOrDefault(code, code);
        String message = Reply.text(told, "message");
        if (message.isEmpty()) {
            message = Reply.text(body, "error"); // under /api/ an error is a text
        }
        if (message.isEmpty()) {
            message = "the server answered with status " + status;
        }
        boolean retryable = code.equals("busy") || status == 503;
        LlmaasException.Fault fault = status < 500 ? LlmaasException.Fault.CALLER : LlmaasException.Fault.SERVICE;
        return LlmaasException.of(code, message, "The message says what to do.", fault, retryable);
    }

    private static String path(String context) {
        StringBuilder path = new StringBuilder("/llmaas/contexts/");
        for (byte each : Msgpack.utf8(context)) {
            char c = (char) (each & 0xff);
            boolean isPlain = c < 128 && (Character.isLetterOrDigit(c) || "-._~".indexOf(c) >= 0);
            path.append(isPlain ? String.valueOf(c) : String.format("%%%02X", (int) c));
        }
        return path.toString();
    }

    @Override
    public String model() {
        for (Map<String, Object> each : Reply.maps(read("GET", "/v1/models", null).get("data"))) {
            return Reply.text(each, "id");
        }
        return "";
    }

    @Override
    public ContextInfo context(String name, String system) {
        Map<String, Object> request = new LinkedHashMap<>();
        if (system != null) {
            request.put("system", system);
        }
        return ContextInfo.of(read("PUT", path(name), request));
    }

    @Override
    public List<Message> show(String context) {
        List<Message> messages = new ArrayList<>();
        for (Map<String, Object> each : Reply.maps(read("GET", path(context), null).get("messages"))) {
            messages.add(Message.of(each));
        }
        return messages;
    }

    /** The app's contexts, last used first: 100 at most. */
    @Override
    public List<ContextInfo> contexts() {
        List<ContextInfo> found = new ArrayList<>();
        for (Map<String, Object> each : Reply.maps(read("GET", "/llmaas/state", null).get("contexts"))) {
            found.add(ContextInfo.of(each));
        }
        return found;
    }

    @Override
    public void hint(String context) {
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("model", "default");
        request.put("keep_alive", 60);
        request.put("llmaas", Collections.singletonMap("context", context));
        read("POST", "/api/generate", request);
    }

    @Override
    public void delete(String context) {
        read("DELETE", path(context), null);
    }

    @Override
    public Answer generate(String context, Generation generation) {
        return new HttpAnswer(ask("POST", "/v1/chat/completions", request(context, generation), false));
    }

    /** The request in the terms of OpenAI's API, and of llmaas's extensions. */
    private static Map<String, Object> request(String context, Generation generation) {
        Map<String, Object> request = new LinkedHashMap<>();
        Map<String, Object> extension = new LinkedHashMap<>();
        List<Object> messages = new ArrayList<>();
        for (Message message : generation.messages()) {
            messages.add(message.map());
        }
        request.put("model", "default");
        request.put("stream", true);
        request.put("stream_options", Collections.singletonMap("include_usage", true));
        request.put("max_tokens", 256);
        request.put("messages", messages);
        request.put("llmaas", extension);
        extension.put("context", context);
        for (Map.Entry<String, Object> field : generation.fields().entrySet()) {
            switch (field.getKey()) {
                case "top_k":
                case "min_p":
                case "grammar":
                case "priority":
                    extension.put(field.getKey(), field.getValue());
                    break;
                case "deadline_s":
                    extension.put("deadline", field.getValue());
                    break;
                case "json_schema":
                    request.put("response_format", schema((String) field.getValue()));
                    break;
                default:
                    request.put(field.getKey(), field.getValue());
            }
        }
        return request;
    }

    private static Map<String, Object> schema(String text) {
        Map<String, Object> named = new LinkedHashMap<>();
        named.put("name", "answer");
        named.put("schema", Json.read(text));
        Map<String, Object> format = new LinkedHashMap<>();
        format.put("type", "json_schema");
        format.put("json_schema", named);
        return format;
    }

    /** Requests that run end by themselves, or with {@link Answer#cancel}; new ones are refused. */
    @Override
    public void close() {
        closed = true;
    }

    private final class HttpAnswer extends Answer {
        private final HttpResponse response;
        private volatile boolean cancelled;
        private String reason = "";
        private String context = "";
        private long nTokens;

        HttpAnswer(HttpResponse response) {
            this.response = response;
        }

        @Override
        String more() {
            try {
                String line = response.line();
                if (line == null) {
                    throw new IOException("it was closed");
                }
                if (!line.startsWith("data: ")) {
                    return "";
                }
                String data = line.substring("data: ".length());
                if (data.equals("[DONE]")) {
                    end(new Done(context, reason, nTokens));
                    response.close();
                    return null;
                }
                return take(Json.readMap(data));
            } catch (IOException e) {
                response.close();
                throw cancelled ? LlmaasException.cancelled() : lost(e.getMessage());
            } catch (LlmaasException e) {
                response.close();
                throw e;
            }
        }

        private String take(Map<String, Object> event) {
            if (event.get("error") != null) {
                throw error(event, 500);
            }
            Map<String, Object> served = Reply.map(event, "llmaas");
            nTokens = Reply.number(served, "n_tokens", nTokens);
            context = context.isEmpty() ? Reply.text(served, "context") : context;
            String text = "";
            for (Map<String, Object> choice : Reply.maps(event.get("choices"))) {
                String ended = Reply.text(choice, "finish_reason");
                reason = ended.isEmpty() ? reason : ended;
                text += Reply.text(Reply.map(choice, "delta"), "content");
            }
            return text;
        }

        @Override
        public void cancel() {
            cancelled = true;
            response.close();
        }
    }
}
