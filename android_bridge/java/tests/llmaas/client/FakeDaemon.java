package llmaas.client;

import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;

/**
 * A daemon for tests, on a TCP port of this machine: what it says to its first connection, its second and so on is up to
 * the test. What a talk throws fails the test in {@link #close}.
 */
final class FakeDaemon implements Closeable {
    /** What is said on one connection, which is closed at the end. */
    interface Talk {
        void with(Peer peer) throws Exception;
    }

    final Endpoint endpoint;
    private final ServerSocket listener;
    private final List<Throwable> failures = new CopyOnWriteArrayList<>();
    private final List<Thread> threads = new CopyOnWriteArrayList<>();
    private final List<Socket> sockets = new CopyOnWriteArrayList<>();

    FakeDaemon(Talk... talks) throws IOException {
        listener = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        endpoint = Endpoint.tcp(listener.getInetAddress().getHostAddress(), listener.getLocalPort());
        run(
                () -> {
                    for (Talk talk : talks) {
                        Socket socket = accepted();
                        if (socket == null) {
                            return;
                        }
                        run(() -> talk(talk, socket));
                    }
                });
    }

    private Socket accepted() {
        try {
            Socket socket = listener.accept();
            socket.setTcpNoDelay(true);
            sockets.add(socket);
            return socket;
        } catch (IOException e) {
            return null; // the test is over
        }
    }

    private void run(Runnable task) {
        Thread thread = new Thread(task, "daemon");
        thread.setDaemon(true);
        threads.add(thread);
        thread.start();
    }

    private void talk(Talk talk, Socket socket) {
        try (Socket open = socket) {
            talk.with(new Peer(open.getInputStream(), open.getOutputStream()));
        } catch (Throwable e) {
            failures.add(e);
        }
    }

    @Override
    public void close() throws IOException {
        listener.close();
        try {
            for (Thread thread : threads) {
                thread.join(10_000);
                if (thread.isAlive()) {
                    failures.add(new AssertionError("a talk waits for what does not come"));
                }
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        for (Socket socket : sockets) {
            socket.close();
        }
        for (Throwable failure : failures) {
            throw new AssertionError("the daemon's side of a talk failed: " + failure, failure);
        }
    }

    /** A client, as the daemon sees it. */
    static final class Peer {
        final InputStream in;
        final OutputStream out;
        final List<Map<String, Object>> read = new ArrayList<>();

        Peer(InputStream in, OutputStream out) {
            this.in = in;
            this.out = out;
        }

        /** The next frame, which must ask for this. */
        Map<String, Object> read(String op) throws IOException {
            Map<String, Object> frame = Connection.readFrame(in, 4 << 20);
            read.add(frame);
            if (!op.equals(frame.get("op"))) {
                throw new AssertionError("not " + op + ": " + frame);
            }
            return frame;
        }

        /** Nothing more may come before the client hangs up. */
        void readsNoMore() throws IOException {
            int n = in.read();
            if (n >= 0) {
                throw new AssertionError("more came");
            }
        }

        void send(Object... keysAndValues) throws IOException {
            Map<String, Object> frame = new LinkedHashMap<>();
            for (int i = 0; i < keysAndValues.length; i += 2) {
                frame.put((String) keysAndValues[i], keysAndValues[i + 1]);
            }
            out.write(Connection.frame(frame));
            out.flush();
        }

        /** Both sides say hello. */
        Map<String, Object> greet() throws IOException {
            Map<String, Object> hello = read("hello");
            send("type", "hello", "version", 1, "model", "a model");
            return hello;
        }

        void piece(Object id, String text) throws IOException {
            send("id", id, "type", "piece", "text", text);
        }

        void done(Object id, Object result) throws IOException {
            send("id", id, "type", "done", "result", result);
        }

        void failed(Object id, String code, Object... more) throws IOException {
            Object[] all = new Object[10 + more.length];
            Object[] first = {"id", id, "type", "failed", "code", code, "message", "it is " + code, "hint", "do something"};
            System.arraycopy(first, 0, all, 0, 10);
            System.arraycopy(more, 0, all, 10, more.length);
            send(all);
        }
    }

    /** What ends an answer. */
    static Map<String, Object> result(String reason) {
        Map<String, Object> result = new LinkedHashMap<>();
        result.put("context", "c0ffee");
        result.put("reason", reason);
        result.put("n_tokens", 9L);
        return result;
    }
}
