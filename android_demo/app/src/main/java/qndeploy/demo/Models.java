package qndeploy.demo;

import android.content.Context;
import android.content.res.AssetManager;
import android.util.Log;
import java.io.DataInputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.Outcome;
import qndeploy.core.Runner;
import qndeploy.executorch.ExecuTorchProgram;
import qndeploy.ort.OrtProgram;

/** The models among the app's assets, and the runtimes that run them. */
final class Models {
    private static final String REPORT = "parity.json";
    private static final String TAG = "QN_PARITY";
    private static final int RUNS = 100;

    private Models() {}

    static List<Model> all(Context context) throws IOException, JSONException {
        AssetManager assets = context.getAssets();
        return Model.all(path -> bytes(assets, path), context.getFilesDir());
    }

    static Engine.Program load(Model model, String file) throws Exception {
        return file.endsWith(".onnx") ? new OrtProgram(model, file) : new ExecuTorchProgram(model, file);
    }

    /** Runs all programs of these models; a line each goes to the log, all of it to REPORT in the app's files. */
    static List<Outcome> check(Context context, List<Model> models) throws IOException, JSONException {
        List<Outcome> outcomes = new ArrayList<>();
        JSONArray report = new JSONArray();
        for (Model model : models) {
            for (Outcome outcome : new Runner(Models::load, RUNS).run(model)) {
                Log.i(TAG, outcome.toString());
                report.put(new JSONObject(outcome.facts));
                outcomes.add(outcome);
            }
        }
        try (FileOutputStream out = new FileOutputStream(new File(context.getFilesDir(), REPORT))) {
            out.write(report.toString(1).getBytes(StandardCharsets.UTF_8));
        }
        return outcomes;
    }

    private static byte[] bytes(AssetManager assets, String path) throws IOException {
        try (DataInputStream in = new DataInputStream(assets.open(path))) {
            byte[] data = new byte[in.available()]; // of an asset that is all of it
            in.readFully(data);
            return data;
        }
    }
}
