package llmaas.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.net.ProtocolFamily;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.nio.channels.Channels;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** Where the socket is, and what comes through it. */
@Timeout(60)
final class UnixEndpointTest {
    @TempDir Path folder;

    /** Listens there, by Java 16's classes, which this is not compiled with. */
    private static ServerSocketChannel listen(Path place) throws IOException, ReflectiveOperationException {
        assumeTrue(Runtime.version().feature() >= 16, "Unix sockets take Java 16");
        ProtocolFamily family = StandardProtocolFamily.valueOf("UNIX");
        Object server = ServerSocketChannel.class.getMethod("open", ProtocolFamily.class).invoke(null, family);
        Object address = Class.forName("java.net.UnixDomainSocketAddress").getMethod("of", Path.class).invoke(null, place);
        return ((ServerSocketChannel) server).bind((SocketAddress) address);
    }

    @Test
    void aQuestionAndItsAnswer() throws Exception {
        Path place = folder.resolve("d.sock");
        List<Throwable> failures = Collections.synchronizedList(new ArrayList<>());
        try (ServerSocketChannel server = listen(place)) {
            Thread thread =
                    new Thread(
                            () -> {
                                try (SocketChannel channel = server.accept()) {
                                    FakeDaemon.Peer peer =
                                            new FakeDaemon.Peer(
                                                    Channels.newInputStream(channel), Channels.newOutputStream(channel));
                                    peer.greet();
                                    Object id = peer.read("generate").get("id");
                                    peer.piece(id, "Gr\u00fc\u00dfe");
                                    peer.done(id, FakeDaemon.result("stop"));
                                    peer.readsNoMore();
                                } catch (Throwable e) {
                                    failures.add(e);
                                }
                            });
            thread.start();
            try (Client client = new FrameClient(Endpoint.unix(place.toString()), "test", null, 0)) {
                Answer answer = client.generate("inbox", Generation.of("hello"));
                assertEquals("stop", answer.done().reason());
                assertEquals("Gr\u00fc\u00dfe", answer.text());
            }
            thread.join();
        }
        assertEquals(Collections.emptyList(), failures);
    }

    @Test
    void whereNobodyListens() throws Exception {
        Path place = folder.resolve("d.sock");
        assertThrows(LlmaasException.NotServing.class, () -> new FrameClient(Endpoint.unix(place.toString()), "a", null, 0));
        listen(place).close(); // the file stays
        assertTrue(Files.exists(place));
        assertThrows(LlmaasException.NotServing.class, () -> new FrameClient(Endpoint.unix(place.toString()), "a", null, 0));
    }

    @Test
    void whereItLooks() throws IOException {
        Map<String, String> environment = new HashMap<>();
        environment.put("LLMAAS_SOCKET", "/a/b.sock");
        environment.put("XDG_RUNTIME_DIR", folder.toString());
        assertEquals("/a/b.sock", UnixEndpoint.defaultPath(environment));
        environment.remove("LLMAAS_SOCKET");
        Path own = Files.createDirectory(folder.resolve("llmaas")).resolve("llmaas.sock");
        Files.createFile(own);
        assertEquals(own.toString(), UnixEndpoint.defaultPath(environment));
        environment.put("XDG_RUNTIME_DIR", "relative");
        assertTrue(UnixEndpoint.defaultPath(environment).startsWith("/"), "a relative path is none");
    }
}
