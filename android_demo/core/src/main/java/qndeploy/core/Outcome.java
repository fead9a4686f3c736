package qndeploy.core;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONException;
import org.json.JSONObject;

/** What one program did on one runtime, or how two runtimes agree with each other. */
public final class Outcome {
    public final String file;
    public final String runtime;
    public final Verdict verdict;
    /** Outputs for the golden inputs; null if it did not run. */
    public final List<TensorData> outputs;
    /**
     * All that is reported: model, file, runtime, found, limit; file_bytes, load_us, ram_bytes (growth of the process by loading and the first
     * run), p50_us and p90_us for a batch of this size.
     */
    public final Map<String, Object> facts = new LinkedHashMap<>();

    Outcome(String model, String file, String runtime, Verdict verdict, List<TensorData> outputs, Map<String, Long> figures) {
        this.file = file;
        this.runtime = runtime;
        this.verdict = verdict;
        this.outputs = outputs;
        facts.put("model", model);
        facts.put("file", file);
        facts.put("runtime", runtime);
        facts.put("found", verdict.found);
        facts.put("limit", verdict.limit);
        facts.putAll(figures);
    }

    /** One line for the log: PASS or FAIL, then key=value pairs. */
    public String line() {
        StringBuilder line = new StringBuilder(verdict.passed ? "PASS" : "FAIL");
        for (Map.Entry<String, Object> fact : facts.entrySet()) {
            Object value = fact.getValue();
            line.append(' ').append(fact.getKey()).append('=').append(value instanceof String ? JSONObject.quote((String) value) : value);
        }
        return line.toString();
    }

    /** The same as a JSON object. */
    public JSONObject json() throws JSONException {
        return new JSONObject(facts).put("passed", verdict.passed);
    }
}
