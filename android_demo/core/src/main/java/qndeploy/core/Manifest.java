package qndeploy.core;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What the app needs of manifest.json: files with hashes, how strict the verdict is, and the outputs' quantization steps. */
public final class Manifest {
    private static final String FORMAT = "qn-deploy build";
    private static final double VERSION = 2;

    /** A program file or another form of the same program. */
    public static final class Entry {
        public final String exporter;
        public final String sha256;

        Entry(String exporter, String sha256) {
            this.exporter = exporter;
            this.sha256 = sha256;
        }
    }

    public final Map<String, Entry> files = new LinkedHashMap<>();
    public final String goldenSha256;
    public final boolean isStatic;
    /** True if every operator has an exact integer rule, so that a runtime has to meet the reference bit for bit. */
    public final boolean isExact;
    public final boolean isBatched;
    public final List<String> outputs = new ArrayList<>();
    /** The quantization step of each output, null for a float output. */
    public final List<Double> steps = new ArrayList<>();

    public Manifest(byte[] json) throws BadFileException {
        Map<String, Object> all = Json.parse(json);
        if (!FORMAT.equals(all.get("format")) || !Double.valueOf(VERSION).equals(all.get("version"))) {
            throw new BadFileException("manifest.json of format " + all.get("format") + " " + all.get("version") + ", expected " + FORMAT + " 2");
        }
        goldenSha256 = Json.get(all, "golden_sha256", String.class);
        isStatic = Json.get(all, "activations", String.class).startsWith("static"); // static, or static-qnnpack
        isExact = isStatic && Json.get(all, "inexact", List.class).isEmpty();
        Map<String, Object> programs = Json.object(all, "files");
        for (String name : programs.keySet()) {
            Map<String, Object> program = Json.object(programs, name);
            String exporter = Json.get(program, "exporter", String.class);
            files.put(name, new Entry(exporter, Json.get(program, "sha256", String.class)));
            for (String group : new String[] {"companions", "parts"}) {
                Map<String, Object> beside = program.containsKey(group) ? Json.object(program, group) : new LinkedHashMap<String, Object>();
                for (String other : beside.keySet()) {
                    files.put(other, new Entry(exporter, Json.get(Json.object(beside, other), "sha256", String.class)));
                }
            }
        }
        boolean batched = true;
        for (Object input : Json.get(all, "inputs", List.class)) {
            List<?> shape = Json.get(Json.cast(input), "shape", List.class);
            batched &= !shape.isEmpty() && shape.get(0) == null;
        }
        isBatched = batched;
        for (Object output : Json.get(all, "outputs", List.class)) {
            outputs.add(Json.get(Json.cast(output), "name", String.class));
            steps.add((Double) Json.cast(output).get("step"));
        }
    }
}
