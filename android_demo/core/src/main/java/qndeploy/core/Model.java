package qndeploy.core;

import static qndeploy.core.BadFileException.check;

import java.io.File;
import java.io.IOException;
import java.math.BigInteger;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** One exported model among the app's assets. Every file is checked against its SHA-256 before anything reads it. */
public final class Model {
    /** Where files come from: an app's assets, or a folder. */
    public interface Assets {
        byte[] read(String path) throws IOException;
    }

    private static final String ROOT = "models/";
    public final String name;
    public final Manifest manifest;
    /** The programs that were put into the app. */
    public final List<String> programs = new ArrayList<>();
    /** A folder of the app's own, for files that a runtime takes by their path only. */
    public final File scratch;
    private final Assets assets;
    private final Safetensors golden;

    private Model(Assets assets, String name, JSONObject entry, File scratch) throws IOException, JSONException {
        this.assets = assets;
        this.name = name;
        this.scratch = scratch;
        JSONArray listed = entry.getJSONArray("files");
        for (int i = 0; i < listed.length(); i++) {
            if (!listed.getString(i).equals(ShellForm.SIDECAR)) {
                programs.add(listed.getString(i));
            }
        }
        manifest = new Manifest(checked("manifest.json", entry.getString("manifest_sha256")));
        check(manifest.files.keySet().containsAll(programs), name + ": not all of " + programs + " are listed in the manifest");
        golden = new Safetensors(checked("golden.safetensors", manifest.goldenSha256));
    }

    /** The models that models/index.json lists, as `qn-deploy android` wrote it. */
    public static List<Model> all(Assets assets, File scratch) throws IOException, JSONException {
        JSONObject index = Manifest.json(assets.read(ROOT + "index.json")).getJSONObject("models");
        List<Model> models = new ArrayList<>();
        for (String name : Manifest.names(index)) {
            models.add(new Model(assets, name, index.getJSONObject(name), scratch));
        }
        return models;
    }

    /** A program file; refused if it isn't the file that was exported. */
    public byte[] read(String file) throws IOException {
        check(manifest.files.containsKey(file), name + ": " + file + " is not listed in the manifest");
        return checked(file, manifest.files.get(file).sha256);
    }

    /** Tensors of golden.safetensors: "input", "float", "simulated/EXPORTER" or "reference/EXPORTER". */
    public List<TensorData> golden(String prefix) throws BadFileException {
        List<TensorData> tensors = new ArrayList<>();
        while (golden.tensors.containsKey(prefix + "/" + tensors.size())) {
            tensors.add(golden.tensors.get(prefix + "/" + tensors.size()));
        }
        check(!tensors.isEmpty(), name + ": golden.safetensors holds no " + prefix);
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
        byte[] data = assets.read(ROOT + name + "/" + file);
        String found = String.format("%064x", new BigInteger(1, sha256().digest(data)));
        check(found.equals(sha256), name + ": " + file + " is not the file that was exported: its SHA-256 is " + found + ", expected " + sha256);
        return data;
    }

    /** The name, as a list to choose from shows it. */
    @Override
    public String toString() {
        return name;
    }

    static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error); // every Java has it
        }
    }
}
