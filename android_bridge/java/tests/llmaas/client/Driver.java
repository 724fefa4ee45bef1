package llmaas.client;

import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;

/** The driver of the Java client: see android_bridge/conformance/README.md. */
public final class Driver {
    private static PrintStream out;
    private static Client client;

    private Driver() {}

    private static String unescaped(String field) {
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < field.length(); i++) {
            char c = field.charAt(i);
            if (c == '\\') {
                c = field.charAt(++i);
                c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
            }
            text.append(c);
        }
        return text.toString();
    }

    private static void say(Object... fields) {
        StringBuilder line = new StringBuilder();
        for (Object field : fields) {
            String text = String.valueOf(field).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t");
            line.append(line.length() == 0 ? "" : "\t").append(text);
        }
        out.print(line + "\n");
        out.flush();
    }

    private static Client connect(String place, String app, String token, long retryMs) {
        String name = app.isEmpty() ? null : app;
        String secret = token.isEmpty() ? null : token;
        if (place.startsWith("http+unix:")) {
            return new HttpClient(Endpoint.unix(place.substring("http+unix:".length())), name, secret, retryMs);
        }
        if (place.startsWith("http://")) {
            String[] parts = place.substring("http://".length()).split(":");
            return new HttpClient(Endpoint.tcp(parts[0], Integer.parseInt(parts[1])), null, secret, retryMs);
        }
        return new FrameClient(Endpoint.unix(place), name, secret, retryMs);
    }

    private static void ask(String context, String tokens, String text, String grammar) {
        Generation generation = Generation.of(text).maxTokens(Integer.parseInt(tokens)).temperature(0);
        if (grammar != null) {
            generation.grammar(grammar);
        }
        try (Answer answer = client.generate(context, generation)) {
            int pieces = 0;
            for (String piece : answer) {
                pieces += piece.isEmpty() ? 0 : 1;
            }
            say("answer", answer.done().reason(), answer.done().nTokens(), pieces, answer.text());
        }
    }

    /** By callbacks, and from another thread than the one that is told of the answer. */
    private static void cancel(String context, String text) throws InterruptedException {
        CountDownLatch begun = new CountDownLatch(1);
        CountDownLatch ended = new CountDownLatch(1);
        StringBuilder told = new StringBuilder();
        List<Object> last = new ArrayList<>();
        AnswerListener listener =
                new AnswerListener() {
                    @Override
                    public void onText(String piece) {
                        told.append(piece);
                        begun.countDown();
                    }

                    @Override
                    public void onDone(Done done) {
                        last.add("answer");
                        ended.countDown();
                    }

                    @Override
                    public void onError(LlmaasException error) {
                        last.add(error.code());
                        begun.countDown();
                        ended.countDown();
                    }
                };
        Generation generation = Generation.of(text).maxTokens(600).temperature(0);
        Answer answer = client.generate(context, generation, listener, task -> new Thread(task).start());
        begun.await();
        answer.cancel();
        ended.await();
        say(last.get(0), told);
    }

    private static void obey(String[] words) throws InterruptedException {
        switch (words[0]) {
            case "hello":
                say("hello", client.model());
                break;
            case "create":
                client.context(words[1], words[2].isEmpty() ? null : words[2]);
                say("ok");
                break;
            case "ask":
                ask(words[1], words[2], words[3], null);
                break;
            case "constrained":
                ask(words[1], words[2], words[4], words[3]);
                break;
            case "cancel":
                cancel(words[1], words[2]);
                break;
            case "show":
                List<Object> messages = new ArrayList<>(Collections.singleton("messages"));
                for (Message message : client.show(words[1])) {
                    messages.add(message.role());
                    messages.add(message.content());
                }
                say(messages.toArray());
                break;
            case "list":
                List<Object> names = new ArrayList<>(Collections.singleton("contexts"));
                for (ContextInfo context : client.contexts()) {
                    names.add(context.name());
                }
                say(names.toArray());
                break;
            case "hint":
                client.hint(words[1]);
                say("ok");
                break;
            case "delete":
                client.delete(words[1]);
                say("ok");
                break;
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    private static byte[] bytes(String hex) {
        byte[] found = new byte[hex.length() / 2];
        for (int i = 0; i < found.length; i++) {
            found[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return found;
    }

    private static Map<String, Object> sent(String what) {
        Map<String, Object> frame = new LinkedHashMap<>();
        switch (what) {
            case "ping":
                frame.put("id", 3L);
                frame.put("op", "ping");
                break;
            case "create":
                frame.put("id", 300L);
                frame.put("op", "create");
                frame.put("name", "inbox");
                frame.put("system", "You are brief. You sort mails into folders.");
                frame.put("exist_ok", true);
                break;
            default:
                frame.put("id", 5_000_000_000L);
                frame.put("op", "generate");
                frame.put("context", "inbox");
                Message message = new Message("user", "Gr\u00fc\u00dfe \ud83d\ude00");
                frame.put("messages", Collections.singletonList(message.map()));
                frame.put("max_tokens", 70000);
                frame.put("temperature", 0.5);
        }
        return frame;
    }

    public static void main(String[] args) throws IOException, InterruptedException {
        out = new PrintStream(System.out, false, "UTF-8");
        String place = args[0];
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            String[] words = line.split("\t", -1);
            for (int i = 0; i < words.length; i++) {
                words[i] = unescaped(words[i]);
            }
            try {
                if (words[0].equals("decode")) {
                    say("json", Json.write(Connection.readFrame(new ByteArrayInputStream(bytes(words[1])), 4 << 20)));
                    continue;
                }
                if (words[0].equals("encode")) {
                    StringBuilder hex = new StringBuilder();
                    for (byte each : Connection.frame(sent(words[1]))) {
                        hex.append(String.format("%02x", each & 0xff));
                    }
                    say("frame", hex);
                    continue;
                }
                if (words[0].equals("to")) {
                    if (client != null) {
                        client.close();
                    }
                    client = null;
                    place = words[1];
                    say("ok");
                    continue;
                }
                if (client == null) {
                    client = connect(place, args[1], args[2], 1000 * Long.parseLong(args[3]));
                }
                obey(words);
            } catch (LlmaasException e) {
                say("failed", e.code(), e.retryable() ? "yes" : "no", e.getMessage(), e.hint());
            }
        }
        if (client != null) {
            client.close();
        }
    }
}
