package llmaas.client;

import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/**
 * One connection that speaks the wire protocol. A thread reads; whoever asks writes.
 *
 * <p>Law: when it is over, for whatever reason, every exchange has ended.
 */
final class Connection {
    private static final int VERSION = 1;
    private static final int FIRST_FRAME = 4 << 20;
    private static final int MOST_FRAME = 64 << 20;
    private final String place;
    private final Channel channel;
    private final OutputStream out;
    private final Map<Long, Exchange> live = new ConcurrentHashMap<>();
    private final Exchange greeting = new Exchange(0);
    private final Map<String, Object> hello;
    private volatile int maxFrame = FIRST_FRAME;
    private volatile LlmaasException fault;
    private long lastId;

    Connection(Endpoint endpoint, Map<String, Object> hello, int timeoutMs) {
        place = endpoint.toString();
        try {
            channel = endpoint.open(timeoutMs);
            out = channel.output();
            InputStream in = channel.input();
            Thread reader = new Thread(() -> read(in), "llmaas " + place);
            reader.setDaemon(true);
            reader.start();
        } catch (IOException e) {
            throw LlmaasException.lost(place, String.valueOf(e.getMessage()));
        }
        try {
            write(hello);
            this.hello = greeting.end(timeoutMs, place);
        } catch (LlmaasException e) {
            lose(e);
            throw e;
        }
    }

    /** What the daemon said of itself. */
    Map<String, Object> hello() {
        return hello;
    }

    boolean isOver() {
        return fault != null;
    }

    Exchange start(Map<String, Object> request) {
        Exchange exchange;
        Map<String, Object> frame = new LinkedHashMap<>();
        synchronized (this) {
            exchange = new Exchange(++lastId);
        }
        frame.put("id", exchange.id);
        frame.putAll(request);
        live.put(exchange.id, exchange);
        try {
            write(frame);
        } catch (LlmaasException e) {
            live.remove(exchange.id);
            throw e;
        }
        if (fault != null) { // it may have been put there after all others were told
            exchange.failed(fault);
        }
        return exchange;
    }

    private void write(Map<String, Object> frame) {
        byte[] data = frame(frame);
        if (data.length - 4 > maxFrame) {
            throw LlmaasException.tooLarge("the request", data.length - 4, maxFrame);
        }
        try {
            synchronized (out) {
                out.write(data);
                out.flush();
            }
        } catch (IOException e) {
            // The daemon may have said why it hung up: the thread that reads tells it, or that the connection is lost.
            if (fault != null) {
                throw fault.again();
            }
        }
    }

    static byte[] frame(Map<String, Object> map) {
        byte[] body = Msgpack.encode(map);
        byte[] frame = new byte[body.length + 4];
        for (int i = 0; i < 4; i++) {
            frame[i] = (byte) (body.length >>> (24 - 8 * i));
        }
        System.arraycopy(body, 0, frame, 4, body.length);
        return frame;
    }

    void lose(LlmaasException why) {
        if (fault == null) {
            fault = why;
        }
        greeting.failed(why);
        for (Exchange exchange : live.values()) {
            exchange.failed(why);
        }
        live.clear();
        try {
            channel.close();
        } catch (IOException e) {
            // It is of no use any more in any case.
        }
    }

    // -- the thread that reads

    private void read(InputStream in) {
        try {
            take(readFrame(in, maxFrame), true);
            while (fault == null) {
                take(readFrame(in, maxFrame), false);
            }
        } catch (IOException e) {
            String why = e.getMessage();
            lose(LlmaasException.lost(place, why == null ? "it was closed" : why));
        } catch (LlmaasException e) {
            lose(e);
        } catch (RuntimeException | OutOfMemoryError e) {
            lose(LlmaasException.malformed(e.toString()));
        }
    }

    /** The map of the next frame. The body's bytes are asked for as they come: a length alone takes no memory. */
    static Map<String, Object> readFrame(InputStream in, int most) throws IOException {
        byte[] head = readFully(in, 4);
        long size = (head[0] & 0xffL) << 24 | (head[1] & 0xff) << 16 | (head[2] & 0xff) << 8 | head[3] & 0xff;
        if (size > most) {
            throw LlmaasException.tooLarge("a frame of the daemon", size, most);
        }
        return Msgpack.decode(readFully(in, (int) size));
    }

    private static byte[] readFully(InputStream in, int size) throws IOException {
        byte[] data = new byte[Math.min(size, 1 << 16)];
        for (int at = 0; at < size; ) {
            if (at == data.length) {
                data = java.util.Arrays.copyOf(data, (int) Math.min(size, 2L * data.length));
            }
            int n = in.read(data, at, data.length - at);
            if (n < 0) {
                throw new EOFException("it was closed");
            }
            at += n;
        }
        return data;
    }

    private void take(Map<String, Object> frame, boolean first) {
        String type = Reply.text(frame, "type");
        boolean failed = type.equals("failed");
        if (first) {
            if (failed) {
                throw Reply.error(frame);
            }
            if (!type.equals("hello") || Reply.number(frame, "version") != VERSION) {
                String message = "what answers does not speak protocol version " + VERSION + " of llmaas";
                String hint = "Upgrade the older one of client and daemon.";
                throw new LlmaasException("version_mismatch", message, hint, LlmaasException.Fault.CALLER, false);
            }
            long most = Reply.number(Reply.map(frame, "limits"), "max_frame", FIRST_FRAME);
            maxFrame = (int) Math.max(1, Math.min(most, MOST_FRAME));
            greeting.done(frame);
            return;
        }
        if (failed && frame.get("id") == null) {
            throw Reply.error(frame);
        }
        long id = Reply.number(frame, "id", -1);
        Exchange exchange = type.equals("piece") ? live.get(id) : live.remove(id);
        if (exchange == null) {
            throw LlmaasException.malformed("a reply to no request");
        }
        if (failed) {
            exchange.failed(Reply.error(frame));
        } else if (type.equals("done")) {
            exchange.done(frame);
        } else if (type.equals("piece") && frame.get("text") instanceof String) {
            exchange.piece(Reply.text(frame, "text"));
        } else {
            exchange.failed(LlmaasException.malformed("a reply of no known type"));
            throw LlmaasException.malformed("a reply of no known type");
        }
    }
}
