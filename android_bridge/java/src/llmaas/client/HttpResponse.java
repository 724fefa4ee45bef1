package llmaas.client;

import java.io.ByteArrayOutputStream;
import java.io.Closeable;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;

/**
 * A request of HTTP/1.1 on a connection of its own, and the response: its status, and the lines of its body.
 *
 * <p>Law: whatever comes gives a response, an IOException or a LlmaasException; no line and no body is longer than its
 * bound. (HttpURLConnection is not used: it repeats requests by itself, and cannot reach a Unix socket.)
 */
final class HttpResponse implements Closeable {
    private static final int MOST_LINE = 4 << 20;
    private static final int MOST_HEAD = 64 << 10;
    private static final long MOST_BODY = 64 << 20;
    private final Channel channel;
    private final InputStream in;
    private final byte[] buffer = new byte[1 << 14];
    private int at;
    private int end;
    private final int status;
    private boolean chunked;
    /** Bytes of the body, or of the chunk, that are left; -1: until the connection ends. */
    private long left = -1;

    private boolean isOver;

    /** Send a request, and read the head of the response. */
    HttpResponse(Channel channel, String head, byte[] body) throws IOException {
        this.channel = channel;
        byte[] start = head.getBytes(StandardCharsets.US_ASCII);
        byte[] all = java.util.Arrays.copyOf(start, start.length + body.length);
        System.arraycopy(body, 0, all, start.length, body.length);
        channel.output().write(all);
        channel.output().flush();
        in = channel.input();
        status = readHead();
    }

    int status() {
        return status;
    }

    private int raw() throws IOException {
        if (at == end) {
            end = Math.max(0, in.read(buffer));
            at = 0;
            if (end == 0) {
                return -1;
            }
        }
        return buffer[at++] & 0xff;
    }

    private String headLine(int most) throws IOException {
        StringBuilder line = new StringBuilder();
        for (int c; (c = raw()) != '\n'; ) {
            if (c < 0) {
                throw new EOFException("it was closed");
            }
            if (line.length() >= most) {
                throw LlmaasException.malformed("the head of the response is too long");
            }
            line.append((char) c);
        }
        int n = line.length();
        return n > 0 && line.charAt(n - 1) == '\r' ? line.substring(0, n - 1) : line.toString();
    }

    private int readHead() throws IOException {
        String first = headLine(MOST_HEAD);
        if (!first.matches("HTTP/1\\.[01] [1-9][0-9]{2}( .*)?")) {
            throw LlmaasException.malformed("what answers is no HTTP server");
        }
        int total = 0;
        for (String line; !(line = headLine(MOST_HEAD)).isEmpty(); ) {
            total += line.length();
            if (total > MOST_HEAD) {
                throw LlmaasException.malformed("the head of the response is too long");
            }
            String lower = line.toLowerCase(java.util.Locale.ROOT).replace(" ", "");
            if (lower.equals("transfer-encoding:chunked")) {
                chunked = true;
            } else if (lower.matches("content-length:[0-9]{1,15}")) {
                left = Long.parseLong(lower.substring("content-length:".length()));
            }
        }
        if (chunked) {
            left = 0;
        }
        return Integer.parseInt(first.substring(9, 12));
    }

    /** The next byte of the body; -1 at its end. */
    private int read() throws IOException {
        if (isOver) {
            return -1;
        }
        if (chunked && left == 0) {
            String size = headLine(100).replaceAll(";.*", "").trim();
            if (!size.matches("[0-9a-fA-F]{1,8}")) {
                throw LlmaasException.malformed("a chunk of the response has no size");
            }
            left = Long.parseLong(size, 16);
            if (left == 0) {
                isOver = true;
                return -1;
            }
        }
        if (left == 0) {
            isOver = true;
            return -1;
        }
        int c = raw();
        if (c < 0 && left < 0) {
            isOver = true;
            return -1;
        }
        if (c < 0) {
            throw new EOFException("it was closed");
        }
        if (left > 0) {
            left--;
        }
        if (chunked && left == 0 && !headLine(2).isEmpty()) {
            throw LlmaasException.malformed("a chunk of the response does not end");
        }
        return c;
    }

    /** The next line of the body, without its end; null if there is none. */
    String line() throws IOException {
        ByteArrayOutputStream line = new ByteArrayOutputStream();
        for (int c; (c = read()) != '\n'; ) {
            if (c < 0) {
                return line.size() == 0 ? null : text(line.toByteArray());
            }
            if (line.size() >= MOST_LINE) {
                throw LlmaasException.tooLarge("a line of the response", line.size() + 1, MOST_LINE);
            }
            line.write(c);
        }
        String text = text(line.toByteArray());
        return text.endsWith("\r") ? text.substring(0, text.length() - 1) : text;
    }

    /** All of the body. */
    String body() throws IOException {
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        for (int c; (c = read()) >= 0; ) {
            if (body.size() >= MOST_BODY) {
                throw LlmaasException.tooLarge("the response", body.size() + 1, MOST_BODY);
            }
            body.write(c);
        }
        return text(body.toByteArray());
    }

    private static String text(byte[] bytes) {
        try {
            return StandardCharsets.UTF_8
                    .newDecoder()
                    .onMalformedInput(CodingErrorAction.REPORT)
                    .decode(ByteBuffer.wrap(bytes))
                    .toString();
        } catch (CharacterCodingException e) {
            throw LlmaasException.malformed("text is no UTF-8");
        }
    }

    @Override
    public void close() {
        try {
            channel.close();
        } catch (IOException e) {
            // It is of no use any more in any case.
        }
    }
}
