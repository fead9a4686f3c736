package qndeploy.demo;

import android.content.Context;
import android.content.res.AssetManager;
import android.util.Log;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.Outcome;
import qndeploy.core.Runner;
import qndeploy.executorch.ExecuTorchEngine;
import qndeploy.ort.OrtEngine;

/** The models among the app's assets, and the runtimes that run them. */
final class Models {
    static final String REPORT = "parity.json";
    private static final String TAG = "QN_PARITY";
    private static final int RUNS = 100;
    static final List<Engine> ENGINES = Arrays.asList(new OrtEngine(), new ExecuTorchEngine());

    private Models() {}

    static List<Model> all(Context context) throws IOException {
        AssetManager assets = context.getAssets();
        return Model.all(path -> bytes(assets, path), context.getFilesDir());
    }

    /** Runs all programs of these models; a line each goes to the log, all of it to REPORT in the app's files. */
    static List<Outcome> check(Context context, List<Model> models) throws IOException {
        List<Outcome> outcomes = new ArrayList<>();
        StringBuilder json = new StringBuilder();
        for (Model model : models) {
            for (Outcome outcome : new Runner(ENGINES, RUNS).run(model)) {
                Log.i(TAG, outcome.line());
                json.append(outcomes.isEmpty() ? "[" : ",\n ").append(outcome.json());
                outcomes.add(outcome);
            }
        }
        try (FileOutputStream out = new FileOutputStream(new File(context.getFilesDir(), REPORT))) {
            out.write(json.append(outcomes.isEmpty() ? "[]\n" : "]\n").toString().getBytes("UTF-8"));
        }
        return outcomes;
    }

    private static byte[] bytes(AssetManager assets, String path) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (InputStream in = assets.open(path)) {
            byte[] buffer = new byte[1 << 16];
            for (int count = in.read(buffer); count > 0; count = in.read(buffer)) {
                bytes.write(buffer, 0, count);
            }
        }
        return bytes.toByteArray();
    }
}
