package llmaas.client;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.Socket;

/** Where a daemon serves, and how to connect to it. Android's LocalSocket is one in the sample app. */
public interface Endpoint {
    /**
     * Connect within so many milliseconds. Throws {@link LlmaasException.NotTrusted}, before anything is sent, if another
     * user serves there than one that is trusted.
     */
    Channel open(int timeoutMs) throws IOException;

    /**
     * The Unix socket of the daemon where the variable LLMAAS_SOCKET says, else where it serves by default. The settings
     * file is not read.
     */
    static Endpoint unix() {
        return unix(UnixEndpoint.defaultPath(System.getenv()));
    }

    /**
     * A Unix socket, by Java 16 or newer. The daemon must run as this user or as root; see {@link #unix(String, String)}.
     */
    static Endpoint unix(String path) {
        return new UnixEndpoint(path, null);
    }

    /** A Unix socket of a daemon that runs as this user, as root, or as {@code daemonUser}: a name, or a number. */
    static Endpoint unix(String path, String daemonUser) {
        return new UnixEndpoint(path, daemonUser);
    }

    /** A TCP port, on this machine only: what is sent is not encrypted. */
    static Endpoint tcp(String host, int port) {
        return new Endpoint() {
            @Override
            public Channel open(int timeoutMs) throws IOException {
                Socket socket = new Socket();
                try {
                    socket.setTcpNoDelay(true);
                    socket.connect(new InetSocketAddress(host, port), timeoutMs);
                } catch (IOException e) {
                    socket.close();
                    throw e;
                }
                return new Channel() {
                    @Override
                    public InputStream input() throws IOException {
                        return socket.getInputStream();
                    }

                    @Override
                    public OutputStream output() throws IOException {
                        return socket.getOutputStream();
                    }

                    @Override
                    public void close() throws IOException {
                        socket.close();
                    }
                };
            }

            @Override
            public String toString() {
                return host + ":" + port;
            }
        };
    }
}
