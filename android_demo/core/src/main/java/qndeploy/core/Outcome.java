package qndeploy.core;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What one program did on one runtime. */
public final class Outcome {
    public final String model;
    public final String file;
    public final String runtime;
    public final Verdict verdict;
    /** file_bytes, ram_bytes (growth of the process by loading and the first run), load_us, and p50_us and p90_us for a batch of this size. */
    public final Map<String, Long> figures;
    /** Outputs for the golden inputs; null if it did not run. */
    public final List<TensorData> outputs;

    Outcome(String model, String file, String runtime, Verdict verdict, Map<String, Long> figures, List<TensorData> outputs) {
        this.model = model;
        this.file = file;
        this.runtime = runtime;
        this.verdict = verdict;
        this.figures = figures;
        this.outputs = outputs;
    }

    /** One line for the log: PASS or FAIL, then key=value pairs. */
    public String line() {
        StringBuilder line = new StringBuilder(verdict.passed ? "PASS" : "FAIL");
        for (Map.Entry<String, String> entry : members().entrySet()) {
            line.append(' ').append(entry.getKey()).append('=').append(entry.getValue());
        }
        return line.toString();
    }

    /** The same as a JSON object. */
    public String json() {
        StringBuilder json = new StringBuilder("{\"passed\": " + verdict.passed);
        for (Map.Entry<String, String> entry : members().entrySet()) {
            json.append(", \"").append(entry.getKey()).append("\": ").append(entry.getValue());
        }
        return json.append('}').toString();
    }

    private Map<String, String> members() {
        Map<String, String> members = new LinkedHashMap<>();
        members.put("model", Json.quote(model));
        members.put("file", Json.quote(file));
        members.put("runtime", Json.quote(runtime));
        members.put("found", Json.quote(verdict.found));
        members.put("limit", Json.quote(verdict.limit));
        for (Map.Entry<String, Long> figure : figures.entrySet()) {
            members.put(figure.getKey(), figure.getValue().toString());
        }
        return members;
    }
}
