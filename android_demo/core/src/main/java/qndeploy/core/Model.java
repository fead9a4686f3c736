package qndeploy.core;

import java.io.File;
import java.io.IOException;
import java.math.BigInteger;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;

/** One exported model among the app's assets. Every file is checked against its SHA-256 before anything reads it. */
public final class Model {
    /** Where files come from: an app's assets, or a folder. */
    public interface Assets {
        byte[] read(String path) throws IOException;
    }

    private static final String ROOT = "models/";
    public final String name;
    public final Manifest manifest;
    /** The files of programs that were put into the app. */
    public final List<String> files;
    /** A folder of the app's own, for files that a runtime takes by their path only. */
    public final File scratch;
    private final Assets assets;
    private final Safetensors golden;

    private Model(Assets assets, String name, Map<String, Object> entry, File scratch) throws IOException {
        this.assets = assets;
        this.name = name;
        this.scratch = scratch;
        List<String> listed = new ArrayList<>();
        for (Object file : Json.get(entry, "files", List.class)) {
            listed.add(String.valueOf(file));
        }
        files = Collections.unmodifiableList(listed);
        manifest = new Manifest(checked("manifest.json", Json.get(entry, "manifest_sha256", String.class)));
        golden = new Safetensors(checked("golden.safetensors", manifest.goldenSha256));
    }

    /** The models that models/index.json lists, as `qn-deploy android` wrote it. */
    public static List<Model> all(Assets assets, File scratch) throws IOException {
        Map<String, Object> index = Json.object(Json.parse(assets.read(ROOT + "index.json")), "models");
        List<Model> models = new ArrayList<>();
        for (String name : index.keySet()) {
            models.add(new Model(assets, name, Json.object(index, name), scratch));
        }
        return models;
    }

    /** A program file; refused if it isn't the file that was exported. */
    public byte[] read(String file) throws IOException {
        if (!manifest.files.containsKey(file)) {
            throw new BadFileException(path(file) + " is not listed in the manifest");
        }
        return checked(file, manifest.files.get(file).sha256);
    }

    /** Tensors of golden.safetensors: "input", "float", "simulated/EXPORTER" or "reference/EXPORTER". */
    public List<TensorData> golden(String prefix) throws BadFileException {
        List<TensorData> tensors = new ArrayList<>();
        while (golden.tensors.containsKey(prefix + "/" + tensors.size())) {
            tensors.add(golden.tensors.get(prefix + "/" + tensors.size()));
        }
        if (tensors.isEmpty()) {
            throw new BadFileException(path("golden.safetensors") + " holds no " + prefix);
        }
        return tensors;
    }

    /** The first golden example alone, or the whole batch if its size is fixed. */
    public List<TensorData> example() throws BadFileException {
        List<TensorData> inputs = new ArrayList<>();
        for (TensorData input : golden("input")) {
            inputs.add(manifest.isBatched ? input.first() : input);
        }
        return inputs;
    }

    private byte[] checked(String file, String sha256) throws IOException {
        byte[] data = assets.read(path(file));
        String found = hex(sha256().digest(data));
        if (!found.equals(sha256)) {
            throw new BadFileException(path(file) + " is not the file that was exported: its SHA-256 is " + found + ", expected " + sha256);
        }
        return data;
    }

    private String path(String file) {
        return ROOT + name + "/" + file;
    }

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error); // every Java has it
        }
    }

    static String hex(byte[] digest) {
        return String.format("%0" + 2 * digest.length + "x", new BigInteger(1, digest));
    }
}
