package llmaas.client;

import java.io.Closeable;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;

/**
 * A connection: bytes in both directions. One thread may read while another writes; {@link #close}, from any thread,
 * ends both.
 */
public interface Channel extends Closeable {
    InputStream input() throws IOException;

    OutputStream output() throws IOException;
}
