package qndeploy.core;

import java.io.DataInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.List;

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

    public static void write(File file, byte[] data) throws IOException {
        try (FileOutputStream out = new FileOutputStream(file)) {
            out.write(data);
        }
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

    public static List<Model> models() throws Exception {
        return Model.all(Fixtures::read, scratch());
    }
}
