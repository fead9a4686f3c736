package qndeploy;

import java.io.DataInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.json.JSONObject;

/** The folder that runtime_tests/test_android.py filled: models as the app's assets hold them, and what Python makes of each file. */
public final class Fixtures {
    public static final File FOLDER = new File(System.getProperty("qn.fixtures"));

    private Fixtures() {}

    public static byte[] read(String path) throws IOException {
        return read(new File(FOLDER, path));
    }

    public static byte[] read(File file) throws IOException {
        byte[] data = new byte[(int) file.length()];
        try (DataInputStream in = new DataInputStream(new FileInputStream(file))) {
            in.readFully(data);
        }
        return data;
    }

    /** The files of a folder by name, none if it is missing. */
    public static File[] files(String folder) {
        File[] files = new File(FOLDER, folder).listFiles();
        files = files == null ? new File[0] : files;
        Arrays.sort(files);
        return files;
    }

    public static File scratch() throws IOException {
        File folder = Files.createTempDirectory("qn").toFile();
        folder.deleteOnExit();
        return folder;
    }

    /** A file as the app maps its assets. */
    public static ByteBuffer map(String path) throws IOException {
        try (FileInputStream in = new FileInputStream(new File(FOLDER, path))) {
            return in.getChannel().map(FileChannel.MapMode.READ_ONLY, 0, in.getChannel().size());
        }
    }

    /** The JSON object in a file. */
    static JSONObject json(String path) throws Exception {
        return Manifest.json(map(path));
    }

    static List<QnBuild> models() throws IOException {
        return models(Fixtures::map);
    }

    static List<QnBuild> models(QnBuild.Assets assets) throws IOException {
        List<QnBuild> models = new ArrayList<>();
        for (String name : QnBuild.names(assets)) {
            models.add(QnBuild.of(assets, name, scratch()));
        }
        return models;
    }
}
