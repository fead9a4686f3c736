package qndeploy;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.json.JSONObject;

/** What one program did on one runtime, or how two runtimes agree with each other. */
public final class Outcome {
    public final Verdict verdict;
    /** Outputs for the golden inputs; null if it did not run. */
    public final List<TensorData> outputs;
    /**
     * All that is reported: passed, model, file, runtime, found, limit; manifest_sha256, file_bytes, load_us, ram_bytes (growth of the process by loading and
     * the first run), p50_us and p90_us for a batch of this size.
     */
    public final Map<String, Object> facts = new LinkedHashMap<>();

    /** A model that can't be read. */
    Outcome(String model, Verdict verdict) {
        this(model, "", "", verdict, null, Collections.emptyMap());
    }

    Outcome(QnBuild build, String file, String runtime, Verdict verdict, List<TensorData> outputs, Map<String, Long> figures) {
        this(build.name, file, runtime, verdict, outputs, figures);
        facts.put("manifest_sha256", build.manifestSha256);
    }

    private Outcome(String model, String file, String runtime, Verdict verdict, List<TensorData> outputs, Map<String, Long> figures) {
        this.verdict = verdict;
        this.outputs = outputs;
        facts.put("passed", verdict.passed);
        facts.put("model", model);
        facts.put("file", file);
        facts.put("runtime", runtime);
        facts.put("found", verdict.found);
        facts.put("limit", verdict.limit);
        facts.putAll(figures);
    }

    /** One line: PASS or FAIL, then the facts as a JSON object. */
    @Override
    public String toString() {
        return (verdict.passed ? "PASS " : "FAIL ") + new JSONObject(facts);
    }
}
