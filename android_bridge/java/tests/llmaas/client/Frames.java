package llmaas.client;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.List;

/** The file of frames that all clients share: the property llmaas.frames says where it is. */
final class Frames {
    private Frames() {}

    /** The two fields of each line of this kind. */
    static List<String[]> of(String kind) throws IOException {
        Path file = Paths.get(System.getProperty("llmaas.frames", "android_bridge/conformance/frames.txt"));
        List<String[]> found = new ArrayList<>();
        for (String line : Files.readAllLines(file, StandardCharsets.UTF_8)) {
            String[] fields = line.split(" ", 3);
            if (fields[0].equals(kind)) {
                found.add(new String[] {fields[1], fields[2]});
            }
        }
        return found;
    }

    static byte[] bytes(String hex) {
        byte[] found = new byte[hex.length() / 2];
        for (int i = 0; i < found.length; i++) {
            found[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return found;
    }
}
