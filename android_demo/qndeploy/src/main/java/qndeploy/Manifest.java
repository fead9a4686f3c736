package qndeploy;

import static qndeploy.BadFileException.check;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** What the app needs of manifest.json: files with hashes, how strict the verdict is, and the outputs' quantization steps. */
public final class Manifest {
    private static final String FORMAT = "qn-deploy build 5";

    /** A program file, or a file beside it: another form of the program, or a part of it. */
    public static final class Entry {
        public final String exporter, runtime, sha256;
        public final long bytes;
        /** True for a .pte that only ExecuTorch with our backend runs; its companion runs without. */
        public final boolean needsBackend;
        public final boolean isStatic;
        /** True if no activation is quantized. */
        public final boolean isFloat;
        /** True if every operator has an exact integer rule, so that a runtime has to meet the reference bit for bit. */
        public final boolean isExact;
        /** The quantization step of each output, null for a float output. */
        public final List<Double> steps = new ArrayList<>();

        Entry(JSONObject program, JSONObject file) throws JSONException {
            exporter = program.getString("exporter");
            runtime = program.getString("runtime");
            isStatic = program.getString("activations").startsWith("static"); // static, or static-qnnpack
            isFloat = program.getString("activations").equals("none");
            isExact = isStatic && program.getJSONArray("inexact").length() == 0;
            JSONArray all = program.getJSONArray("steps");
            for (int i = 0; i < all.length(); i++) {
                steps.add(all.isNull(i) ? null : (Double) all.getDouble(i));
            }
            sha256 = file.getString("sha256");
            bytes = file.getLong("bytes");
            needsBackend = file == program && exporter.equals("executorch") && program.getJSONObject("companions").length() > 0;
        }
    }

    public final Map<String, Entry> files = new HashMap<>();
    public final String goldenSha256;
    /** True if every program takes any number of examples at once. */
    public final boolean isBatched;
    public final List<String> outputs = new ArrayList<>();

    Manifest(ByteBuffer utf8) throws BadFileException, JSONException {
        JSONObject all = json(utf8);
        String format = all.get("format") + " " + all.get("version");
        check(format.equals(FORMAT), "manifest.json of format " + format + ", expected " + FORMAT);
        goldenSha256 = all.getString("golden_sha256");
        boolean batched = true;
        JSONObject programs = all.getJSONObject("files");
        for (String name : names(programs)) {
            JSONObject program = programs.getJSONObject(name);
            files.put(name, new Entry(program, program));
            for (String fact : names(program.getJSONObject("facts"))) {
                batched &= !fact.endsWith(", dimension 0, takes only"); // a runtime that takes less than the model
            }
            for (String group : new String[] {"companions", "parts"}) {
                JSONObject beside = program.getJSONObject(group);
                for (String other : names(beside)) {
                    files.put(other, new Entry(program, beside.getJSONObject(other)));
                }
            }
        }
        JSONArray inputs = all.getJSONArray("inputs");
        for (int i = 0; i < inputs.length(); i++) {
            JSONArray shape = inputs.getJSONObject(i).getJSONArray("shape");
            batched &= shape.length() > 0 && shape.isNull(0);
        }
        isBatched = batched;
        JSONArray results = all.getJSONArray("outputs");
        for (int i = 0; i < results.length(); i++) {
            outputs.add(results.getJSONObject(i).getString("name"));
        }
    }

    static JSONObject json(ByteBuffer utf8) throws JSONException {
        return new JSONObject(StandardCharsets.UTF_8.decode(utf8.duplicate()).toString());
    }

    static Iterable<String> names(JSONObject object) {
        return object::keys;
    }
}
