package qndeploy.core;

import java.io.BufferedReader;
import java.io.FileReader;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Runs every program of a model on its runtime, judges the outputs and measures. */
public final class Runner {
    private static final int WARM_UPS = 5;
    private final List<Engine> engines;
    private final int runs;

    /** `runs`: how many times one example is measured. */
    public Runner(List<Engine> engines, int runs) {
        this.engines = engines;
        this.runs = runs;
    }

    /** One outcome for each program that an engine takes, then, for static activations, one for each runtime after the first against it. */
    public List<Outcome> run(Model model) {
        List<Outcome> outcomes = new ArrayList<>();
        for (String file : model.files) {
            for (Engine engine : engines) {
                if (engine.takes(file)) {
                    outcomes.add(run(model, file, engine));
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
                all.add(new Outcome(model.name, one.file + "," + other.file, runtimes, verdict, new LinkedHashMap<String, Long>(), null));
            }
        }
        return all;
    }

    private Outcome run(Model model, String file, Engine engine) {
        Map<String, Long> figures = new LinkedHashMap<>();
        try {
            int sidecar = file.equals(ShellForm.SHELL) ? model.read(ShellForm.SIDECAR).length : 0;
            figures.put("file_bytes", (long) model.read(file).length + sidecar);
            long before = residentBytes();
            long begin = System.nanoTime();
            try (Engine.Session session = engine.load(model, file)) {
                figures.put("load_us", (System.nanoTime() - begin) / 1000);
                List<TensorData> outputs = session.run(model.golden("input"));
                figures.put("ram_bytes", Math.max(0, residentBytes() - before));
                measure(session, model, figures);
                Verdict verdict = Verdict.ofRuntime(model, model.manifest.files.get(file).exporter, outputs);
                return new Outcome(model.name, file, engine.runtime(), verdict, figures, outputs);
            }
        } catch (Exception | LinkageError error) {
            return new Outcome(model.name, file, engine.runtime(), Verdict.ofError(error), figures, null);
        }
    }

    private void measure(Engine.Session session, Model model, Map<String, Long> figures) throws Exception {
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
        try (BufferedReader status = new BufferedReader(new FileReader("/proc/self/status"))) {
            for (String line = status.readLine(); line != null; line = status.readLine()) {
                if (line.startsWith("VmRSS:")) {
                    return 1024 * Long.parseLong(line.replaceAll("[^0-9]", ""));
                }
            }
        }
        return 0;
    }
}
