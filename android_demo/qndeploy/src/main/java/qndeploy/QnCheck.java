package qndeploy;

import android.content.Context;
import android.util.Log;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.function.BiConsumer;
import org.json.JSONArray;
import org.json.JSONObject;

/**
 * Checks models of the app against their references on this device, and tells `qn-deploy android --check`: a line of the log for each program
 * under TAG, one that begins with DONE at the end, and all of it as JSON in the file REPORT of the app's files.
 */
public final class QnCheck {
    public static final String TAG = "QN_PARITY";
    public static final String REPORT = "parity.json";
    private static final int RUNS = 100;

    private QnCheck() {}

    /** Checks the models of these names; `started` is told model and file of each program. A model that can't be read is an outcome too. */
    public static List<Outcome> run(Context context, List<String> names, BiConsumer<String, String> started) throws IOException {
        List<Outcome> outcomes = new ArrayList<>();
        int passed = 0;
        for (String name : names) {
            for (Outcome outcome : run(context, name, started)) {
                Log.i(TAG, outcome.toString());
                passed += outcome.verdict.passed ? 1 : 0;
                outcomes.add(outcome);
            }
        }
        JSONArray report = new JSONArray();
        for (Outcome outcome : outcomes) {
            report.put(new JSONObject(outcome.facts));
        }
        try (FileOutputStream out = new FileOutputStream(new File(context.getFilesDir(), REPORT))) {
            out.write(report.toString().getBytes(StandardCharsets.UTF_8));
        }
        Log.i(TAG, "DONE " + passed + " of " + outcomes.size() + " passed");
        return outcomes;
    }

    private static List<Outcome> run(Context context, String name, BiConsumer<String, String> started) {
        try {
            return new Runner(RUNS).run(QnBuild.of(context, name), file -> started.accept(name, file));
        } catch (IOException error) {
            return Collections.singletonList(new Outcome(name, Verdict.ofError(error)));
        }
    }
}
