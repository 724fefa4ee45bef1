package llmaas.client;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.InvocationTargetException;
import java.net.ProtocolFamily;
import java.net.SocketAddress;
import java.net.SocketOption;
import java.net.StandardProtocolFamily;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.nio.file.attribute.UserPrincipal;
import java.nio.file.attribute.UserPrincipalNotFoundException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * A Unix socket by Java 16's UnixDomainSocketAddress, which is reached by reflection: the rest runs on Java 11.
 *
 * <p>Law: nothing is sent before the kernel has said whose daemon it is (SO_PEERCRED).
 */
final class UnixEndpoint implements Endpoint {
    private final String path;
    private final String daemonUser;

    UnixEndpoint(String path, String daemonUser) {
        this.path = path;
        this.daemonUser = daemonUser;
    }

    /** The first place that has a socket; where the daemon would make it, if none has. */
    static String defaultPath(Map<String, String> environment) {
        String given = environment.get("LLMAAS_SOCKET");
        if (given != null) {
            return given;
        }
        List<String> folders = new ArrayList<>();
        String runtime = environment.getOrDefault("XDG_RUNTIME_DIR", "");
        if (runtime.startsWith("/")) {
            folders.add(runtime + "/llmaas");
        }
        String uid = uid();
        if (Files.isDirectory(Paths.get("/run/user", uid))) {
            folders.add("/run/user/" + uid + "/llmaas");
        }
        // TMPDIR counts on systems without a /tmp only, such as Termux.
        String tmp = Files.isWritable(Paths.get("/tmp")) ? "/tmp" : environment.getOrDefault("TMPDIR", "/tmp");
        folders.add(tmp + "/llmaas-" + uid);
        for (String folder : folders) {
            if (Files.exists(Paths.get(folder, "llmaas.sock"))) {
                return folder + "/llmaas.sock";
            }
        }
        return folders.get(0) + "/llmaas.sock";
    }

    private static String uid() {
        try {
            return String.valueOf(Files.getAttribute(Paths.get("/proc/self"), "unix:uid"));
        } catch (IOException | UnsupportedOperationException e) {
            return "0";
        }
    }

    @Override
    public Channel open(int timeoutMs) throws IOException {
        SocketChannel channel = null;
        try {
            Object address =
                    Class.forName("java.net.UnixDomainSocketAddress").getMethod("of", String.class).invoke(null, path);
            channel =
                    (SocketChannel)
                            SocketChannel.class
                                    .getMethod("open", ProtocolFamily.class)
                                    .invoke(null, StandardProtocolFamily.valueOf("UNIX"));
            channel.connect((SocketAddress) address);
            refuseStranger(channel);
        } catch (InvocationTargetException e) {
            close(channel);
            throw new IOException(e.getCause());
        } catch (ReflectiveOperationException | IllegalArgumentException e) {
            close(channel);
            throw new LlmaasException.NotServing(
                    "this Java has no Unix sockets", "Use Java 16 or newer, or the daemon's HTTP port.");
        } catch (IOException | RuntimeException e) {
            close(channel);
            throw e;
        }
        return new Streams(channel);
    }

    private static void close(SocketChannel channel) throws IOException {
        if (channel != null) {
            channel.close();
        }
    }

    private void refuseStranger(SocketChannel channel) throws IOException, ReflectiveOperationException {
        Object option = Class.forName("jdk.net.ExtendedSocketOptions").getField("SO_PEERCRED").get(null);
        Object principal = channel.getOption((SocketOption<?>) option);
        Object peer = Class.forName("jdk.net.UnixDomainPrincipal").getMethod("user").invoke(principal);
        UserPrincipal self = Files.getOwner(Paths.get("/proc/self"));
        if (peer.equals(self) || is(peer, "root") || daemonUser != null && is(peer, daemonUser)) {
            return;
        }
        throw new LlmaasException.NotTrusted(
                "whoever serves " + path + " runs as user " + peer + ", neither as you (" + self + ") nor as root",
                "Nothing was sent. If that user is to run the daemon, give it as daemonUser.");
    }

    /** Whether this is the user of that name or number. */
    private static boolean is(Object user, String name) throws IOException {
        try {
            return user.equals(FileSystems.getDefault().getUserPrincipalLookupService().lookupPrincipalByName(name));
        } catch (UserPrincipalNotFoundException e) {
            return false;
        }
    }

    @Override
    public String toString() {
        return path;
    }

    /** The channel's own methods: java.nio.channels.Channels' streams block one another before Java 19. */
    private static final class Streams implements Channel {
        private final SocketChannel channel;

        Streams(SocketChannel channel) {
            this.channel = channel;
        }

        @Override
        public InputStream input() {
            return new InputStream() {
                @Override
                public int read() throws IOException {
                    byte[] one = new byte[1];
                    return read(one, 0, 1) < 0 ? -1 : one[0] & 0xff;
                }

                @Override
                public int read(byte[] to, int from, int n) throws IOException {
                    return channel.read(ByteBuffer.wrap(to, from, n));
                }
            };
        }

        @Override
        public OutputStream output() {
            return new OutputStream() {
                @Override
                public void write(int value) throws IOException {
                    write(new byte[] {(byte) value}, 0, 1);
                }

                @Override
                public void write(byte[] data, int from, int n) throws IOException {
                    ByteBuffer left = ByteBuffer.wrap(data, from, n);
                    while (left.hasRemaining()) {
                        channel.write(left);
                    }
                }
            };
        }

        @Override
        public void close() throws IOException {
            channel.close();
        }
    }
}
