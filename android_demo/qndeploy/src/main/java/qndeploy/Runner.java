package qndeploy;

import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Scanner;
import java.util.function.Consumer;

/** Runs every program of a model on its runtime, judges the outputs and measures. */
public final class Runner {
    private static final int WARM_UPS = 5;
    private final Engine engine;
    private final int runs;

    /** On the runtimes of the app. `runs`: how many times one example is measured. */
    public Runner(int runs) {
        this(Runtimes::load, runs);
    }

    /** On this engine. */
    public Runner(Engine engine, int runs) {
        this.engine = engine;
        this.runs = runs;
    }

    /** One outcome for each program; then, for static activations, one for each that ran on another runtime than the first, against it. */
    public List<Outcome> run(QnBuild build) {
        return run(build, file -> {});
    }

    /** The same; `started` is told each program's file before it is loaded. */
    public List<Outcome> run(QnBuild build, Consumer<String> started) {
        List<Outcome> outcomes = new ArrayList<>();
        for (String file : build.programs) {
            started.accept(file);
            outcomes.add(run(build, file));
        }
        Map<String, Object> first = outcomes.get(0).facts;
        List<TensorData> outputs = outcomes.get(0).outputs;
        String file = build.programs.get(0);
        for (int i = 1; i < build.programs.size(); i++) {
            Outcome other = outcomes.get(i);
            boolean isExact = build.manifest.files.get(file).isExact && build.manifest.files.get(build.programs.get(i)).isExact;
            if (isExact && outputs != null && other.outputs != null && !first.get("runtime").equals(other.facts.get("runtime"))) {
                String files = first.get("file") + "," + other.facts.get("file");
                String runtimes = first.get("runtime") + " to " + other.facts.get("runtime");
                Verdict verdict = Verdict.ofTwins(build, file, outputs, other.outputs);
                outcomes.add(new Outcome(build, files, runtimes, verdict, null, Collections.emptyMap()));
            }
        }
        return outcomes;
    }

    /** What one program does; an error is an outcome too. */
    public Outcome run(QnBuild build, String file) {
        Manifest.Entry entry = build.manifest.files.get(file);
        Map<String, Long> figures = new LinkedHashMap<>();
        try {
            figures.put("file_bytes", entry.bytes + (file.equals(ShellForm.SHELL) ? build.manifest.files.get(ShellForm.SIDECAR).bytes : 0));
            long before = residentBytes();
            long begin = System.nanoTime();
            try (Engine.Program program = engine.load(build, file)) {
                figures.put("load_us", (System.nanoTime() - begin) / 1000);
                List<TensorData> outputs = program.run(build.golden("input"));
                figures.put("ram_bytes", Math.max(0, residentBytes() - before));
                measure(program, build, figures);
                return new Outcome(build, file, entry.runtime, Verdict.ofRuntime(build, file, outputs), outputs, figures);
            }
        } catch (Exception | LinkageError error) {
            return new Outcome(build, file, entry.runtime, Verdict.ofError(error), null, figures);
        }
    }

    private void measure(Engine.Program program, QnBuild build, Map<String, Long> figures) throws Exception {
        List<TensorData> example = build.example();
        long[] micros = new long[runs];
        for (int i = -WARM_UPS; i < runs; i++) {
            long begin = System.nanoTime();
            program.run(example);
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
