package llmaas.sample;

import android.net.LocalSocket;
import android.net.LocalSocketAddress;
import android.os.Process;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import llmaas.client.Channel;
import llmaas.client.Endpoint;

/**
 * A Unix socket by Android's LocalSocket: for a daemon that runs as this app's own user, inside of the app. SELinux keeps
 * an app from the sockets of other apps, those of Termux too.
 *
 * <p>Law: nothing is sent before the kernel has said whose daemon it is.
 */
public final class LocalSocketEndpoint implements Endpoint {
    private final String path;

    public LocalSocketEndpoint(String path) {
        this.path = path;
    }

    @Override
    public Channel open(int timeoutMs) throws IOException {
        LocalSocket socket = new LocalSocket();
        try {
            // LocalSocket.connect takes no time limit; to a Unix socket it either succeeds or fails at once.
            socket.connect(new LocalSocketAddress(path, LocalSocketAddress.Namespace.FILESYSTEM));
            int uid = socket.getPeerCredentials().getUid();
            if (uid != Process.myUid() && uid != 0) {
                throw new IOException("whoever serves " + path + " runs as user " + uid + "; nothing was sent");
            }
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
                // A read in another thread ends with the shutdown, and not with close alone.
                try {
                    socket.shutdownInput();
                    socket.shutdownOutput();
                } finally {
                    socket.close();
                }
            }
        };
    }

    @Override
    public String toString() {
        return path;
    }
}
