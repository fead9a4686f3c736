package qndeploy;

import static qndeploy.BadFileException.check;

import android.content.Context;
import java.io.File;
import java.io.IOException;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** The files of one exported model among an app's assets. Each is checked against its SHA-256 before anything reads it. */
public final class QnBuild {
    /** Where files come from: an app's assets, or a folder. */
    public interface Assets {
        /** All of a file, mapped into memory where that is possible; it stays valid as long as the buffer is in use. */
        ByteBuffer read(String path) throws IOException;
    }

    private static final String ROOT = "models/";
    public final String name;
    public final Manifest manifest;
    /** Of manifest.json: which export of the model this is. */
    public final String manifestSha256;
    /** The programs that were put into the app. */
    public final List<String> programs = new ArrayList<>();
    /** A folder of the app's own, for files that a runtime takes by their path only. */
    final File storage;
    private final Assets assets;
    private final Safetensors golden;

    private QnBuild(Assets assets, String name, JSONObject entry, File storage) throws IOException, JSONException {
        this.assets = assets;
        this.name = name;
        this.storage = storage;
        JSONArray listed = entry.getJSONArray("files");
        for (int i = 0; i < listed.length(); i++) {
            if (!listed.getString(i).equals(ShellForm.SIDECAR)) {
                programs.add(listed.getString(i));
            }
        }
        manifestSha256 = entry.getString("manifest_sha256");
        manifest = new Manifest(checked("manifest.json", manifestSha256));
        check(!programs.isEmpty(), name + ": no program was put into the app");
        check(manifest.files.keySet().containsAll(programs), name + ": not all of " + programs + " are listed in the manifest");
        golden = new Safetensors(checked("golden.safetensors", manifest.goldenSha256));
    }

    /** The names of the models that `qn-deploy android` put into the app. */
    public static List<String> names(Assets assets) throws IOException {
        try {
            List<String> names = new ArrayList<>();
            Manifest.names(index(assets)).forEach(names::add);
            return names;
        } catch (JSONException error) {
            throw new BadFileException("models/index.json is damaged: " + error.getMessage());
        }
    }

    /** The model of this name among an app's assets. */
    public static QnBuild of(Context context, String name) throws IOException {
        return of(new AndroidAssets(context.getAssets()), name, context.getNoBackupFilesDir());
    }

    /** The model of this name; `storage` is a folder for files that a runtime takes by their path only. */
    public static QnBuild of(Assets assets, String name, File storage) throws IOException {
        try {
            JSONObject index = index(assets);
            check(index.has(name), "there is no model " + name + " in the app; put it there: qn-deploy android BUILD --name " + name);
            return new QnBuild(assets, name, index.getJSONObject(name), storage);
        } catch (JSONException error) {
            throw new BadFileException(name + ": manifest.json or models/index.json is damaged: " + error.getMessage());
        }
    }

    /** A program file; refused if it isn't the file that was exported. */
    ByteBuffer read(String file) throws IOException {
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

    private ByteBuffer checked(String file, String sha256) throws IOException {
        ByteBuffer data = assets.read(ROOT + name + "/" + file);
        String found = hex(sha256(data));
        check(found.equals(sha256), name + ": " + file + " is not the file that was exported: its SHA-256 is " + found + ", expected " + sha256);
        return data;
    }

    private static JSONObject index(Assets assets) throws IOException, JSONException {
        return Manifest.json(assets.read(ROOT + "index.json")).getJSONObject("models");
    }

    /** The name, as a list to choose from shows it. */
    @Override
    public String toString() {
        return name;
    }

    static byte[] sha256(ByteBuffer data) {
        MessageDigest digest = newSha256();
        digest.update(data.duplicate());
        return digest.digest();
    }

    static MessageDigest newSha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new IllegalStateException(error); // every Java has it
        }
    }

    static String hex(byte[] digest) {
        return String.format("%064x", new BigInteger(1, digest));
    }
}
