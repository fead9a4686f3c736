package qndeploy.core;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Scanner;

/** Runs every program of a model on its runtime, judges the outputs and measures. */
public final class Runner {
    private static final int WARM_UPS = 5;

    private Runner() {}

    /** One outcome for each program that an engine takes, its example run so often; then, for static activations, runtimes with each other. */
    public static List<Outcome> run(Model model, List<Engine> engines, int runs) {
        List<Outcome> outcomes = new ArrayList<>();
        for (String file : model.files) {
            for (Engine engine : engines) {
                if (engine.takes(file)) {
                    outcomes.add(run(model, file, engine, runs));
                }
            }
        }
        List<Outcome> all = new ArrayList<>(outcomes);
        for (int i = 1; i < outcomes.size() && model.manifest.isStatic; i++) {
            Outcome one = outcomes.get(0);
            Outcome other = outcomes.get(i);
            if (one.outputs != null && other.outputs != null && !one.runtime.equals(other.runtime)) {
                Verdict verdict = Verdict.ofTwins(model, one.outputs, other.outputs);
                String runtimes = one.runtime + " to " + other.runtime;
                all.add(new Outcome(model.name, one.file + "," + other.file, runtimes, verdict, null, Collections.<String, Long>emptyMap()));
            }
        }
        return all;
    }

    private static Outcome run(Model model, String file, Engine engine, int runs) {
        Map<String, Long> figures = new LinkedHashMap<>();
        try {
            long sidecar = file.equals(ShellForm.SHELL) ? model.manifest.file(ShellForm.SIDECAR).getLong("bytes") : 0;
            figures.put("file_bytes", model.manifest.file(file).getLong("bytes") + sidecar);
            long before = residentBytes();
            long begin = System.nanoTime();
            try (Engine.Session session = engine.load(model, file)) {
                figures.put("load_us", (System.nanoTime() - begin) / 1000);
                List<TensorData> outputs = session.run(model.golden("input"));
                figures.put("ram_bytes", Math.max(0, residentBytes() - before));
                measure(session, model, runs, figures);
                Verdict verdict = Verdict.ofRuntime(model, model.manifest.file(file).getString("exporter"), outputs);
                return new Outcome(model.name, file, engine.runtime(), verdict, outputs, figures);
            }
        } catch (Exception | LinkageError error) {
            return new Outcome(model.name, file, engine.runtime(), Verdict.ofError(error), null, figures);
        }
    }

    private static void measure(Engine.Session session, Model model, int runs, Map<String, Long> figures) throws Exception {
        List<TensorData> example = model.example();
        try {
            session.run(example);
        } catch (Exception refused) { // a program of a fixed size
            example = model.golden("input");
        }
        long[] micros = new long[runs];
        for (int i = -WARM_UPS; i < runs; i++) {
            long begin = System.nanoTime();
            session.run(example);
            micros[Math.max(i, 0)] = (System.nanoTime() - begin) / 1000;
        }
        figures.put("batch", example.get(0).shape.length == 0 ? 1 : example.get(0).shape[0]);
        figures.put("p50_us", percentile(micros, 50));
        figures.put("p90_us", percentile(micros, 90));
    }

    /** By nearest rank: the smallest of the values that at least so many per cent of them do not exceed. */
    static long percentile(long[] values, int percent) {
        long[] sorted = values.clone();
        Arrays.sort(sorted);
        return sorted[(percent * sorted.length + 99) / 100 - 1];
    }

    /** Memory of this process that lies in RAM, as Linux counts it; 0 where it does not say. */
    private static long residentBytes() throws IOException {
        try (Scanner status = new Scanner(new File("/proc/self/status"))) {
            return status.findWithinHorizon("VmRSS:\\s*(\\d+) kB", 0) == null ? 0 : 1024 * Long.parseLong(status.match().group(1));
        }
    }
}
