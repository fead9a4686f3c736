package qndeploy.demo;

import android.content.Context;
import android.os.Handler;
import android.os.Looper;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicReference;
import qndeploy.AndroidAssets;
import qndeploy.Outcome;
import qndeploy.QnBuild;
import qndeploy.QnCheck;
import qndeploy.QnModel;
import qndeploy.TensorData;

/**
 * What the screen shows, and the thread that works it out. It outlives the Activity at a rotation; its fields change on the main thread only,
 * after which it calls its listener.
 */
final class Work {
    private static final double SURE = 0.4; // less is no answer: the bars show what is torn between what

    /** What one program makes of a drawing. */
    static final class Reading {
        final String program; // as "digits, model.onnx"
        final double[] shares; // of each digit, 1 in all; null if the program can't run
        final String error;

        Reading(String program, double[] shares, String error) {
            this.program = program;
            this.shares = shares;
            this.error = error;
        }

        int digit() {
            int best = 0;
            for (int i = 0; i < shares.length; i++) {
                best = shares[i] > shares[best] ? i : best;
            }
            return best;
        }

        boolean isSure() {
            return shares != null && shares[digit()] >= SURE;
        }
    }

    /** Names of the models in the app; null until they are read. */
    List<String> models;
    /** Those of them that read digits. */
    List<String> digitModels = Collections.emptyList();
    /** What could not be read, or null. */
    String error;
    /** The program that is being checked now, or null. */
    String running;
    /** Of the last check, or null. */
    List<Outcome> outcomes;
    /** What the programs make of the drawing; none if it is no digit. */
    List<Reading> readings = Collections.emptyList();

    private final Context context;
    private final Handler main = new Handler(Looper.getMainLooper());
    private final ExecutorService background = Executors.newSingleThreadExecutor();
    private final AtomicReference<List<float[]>> drawing = new AtomicReference<>();
    // Programs that read digits, by their model's name, and those that can't be loaded: once, by the background thread.
    private final Map<String, List<QnModel>> readers = new HashMap<>();
    private final List<Reading> failures = new ArrayList<>();
    private Runnable listener = () -> {};

    Work(Context context) {
        this.context = context.getApplicationContext();
    }

    /** Calls back on the main thread after every change, until another listener is set. */
    void listen(Runnable changed) {
        listener = changed;
    }

    /** Reads what models there are, then checks all of them if asked to. */
    void start(boolean check) {
        inBackground(() -> {
            List<String> names = QnBuild.names(new AndroidAssets(context.getAssets()));
            List<String> damaged = new ArrayList<>();
            List<String> digits = new ArrayList<>();
            for (String name : names) {
                try {
                    if (Digit.suits(QnBuild.of(context, name))) {
                        digits.add(name);
                    }
                } catch (IOException bad) {
                    damaged.add(bad.getMessage());
                }
            }
            return () -> {
                models = names;
                digitModels = digits;
                error = damaged.isEmpty() ? null : String.join("\n", damaged);
                if (check) {
                    check(names);
                }
            };
        }, message -> {
            models = Collections.emptyList();
            error = message;
        });
    }

    /** Checks models of these names. */
    void check(List<String> names) {
        if (running != null) {
            return;
        }
        running = "";
        outcomes = null;
        inBackground(() -> {
            List<Outcome> found = QnCheck.run(context, names, (model, file) -> change(() -> running = model + ", " + file));
            return () -> {
                running = null;
                outcomes = found;
            };
        }, message -> {
            running = null;
            error = message;
        });
        listener.run();
    }

    /** Reads a drawing; of those that come faster than they are read, the last. */
    void read(List<float[]> lines) {
        if (drawing.getAndSet(lines) != null) {
            return; // the task that was to read that one reads this one
        }
        List<String> names = digitModels;
        inBackground(() -> {
            TensorData image = Digit.image(drawing.getAndSet(null));
            List<Reading> found = image == null ? Collections.emptyList() : readings(names, image);
            return () -> readings = found;
        }, message -> error = message);
    }

    /** Gives back what can be loaded again. */
    void trim() {
        background.execute(this::unload);
    }

    /** Ends the work; nothing is called back any more. */
    void close() {
        listener = () -> {};
        background.execute(this::unload);
        background.shutdown();
    }

    private void unload() {
        readers.values().forEach(loaded -> loaded.forEach(QnModel::close));
        readers.clear();
        failures.clear();
    }

    private List<Reading> readings(List<String> names, TensorData image) throws IOException {
        List<Reading> found = new ArrayList<>();
        for (String name : names) {
            QnBuild build = readers.containsKey(name) ? null : QnBuild.of(context, name);
            List<QnModel> loaded = readers.computeIfAbsent(name, absent -> new ArrayList<>());
            for (String file : build == null ? Collections.<String>emptyList() : build.programs) {
                try {
                    loaded.add(QnModel.open(build, file));
                } catch (IOException failed) {
                    failures.add(new Reading(name + ", " + file, null, failed.getMessage()));
                }
            }
            for (QnModel model : loaded) {
                found.add(new Reading(name + ", " + model.file, shares(model.run(image).get(0).floats()), null));
            }
        }
        found.addAll(failures);
        return found;
    }

    private static double[] shares(float[] logits) {
        double largest = Double.NEGATIVE_INFINITY;
        for (float logit : logits) {
            largest = Math.max(largest, logit);
        }
        double[] shares = new double[logits.length];
        double sum = 0;
        for (int i = 0; i < logits.length; i++) {
            sum += shares[i] = Math.exp(logits[i] - largest);
        }
        for (int i = 0; i < logits.length; i++) {
            shares[i] /= sum;
        }
        return shares;
    }

    private interface Failed {
        void with(String message);
    }

    private void inBackground(Callable<Runnable> task, Failed failed) {
        background.execute(() -> {
            try {
                change(task.call());
            } catch (Exception | LinkageError problem) {
                change(() -> failed.with(problem.getMessage() == null ? problem.toString() : problem.getMessage()));
            }
        });
    }

    private void change(Runnable change) {
        main.post(() -> {
            change.run();
            listener.run();
        });
    }
}
