package qndeploy.demo;

import android.app.Activity;
import android.os.Bundle;
import android.view.View;
import android.widget.ArrayAdapter;
import android.widget.Spinner;
import android.widget.TextView;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import qndeploy.core.Digit;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.Outcome;
import qndeploy.core.TensorData;

/** Chooses a model, checks it on this device, and classifies drawn digits. With the extra "check" it checks all models at once. */
public final class MainActivity extends Activity {
    private static final String CHECK = "check"; // adb shell am start -n qndeploy.demo/.MainActivity --ez check true
    private static final ExecutorService BACKGROUND = Executors.newSingleThreadExecutor();
    private TextView output;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.main);
        output = findViewById(R.id.output);
        List<Model> models = new ArrayList<>();
        List<Model> readers = new ArrayList<>(); // of digits
        try {
            models.addAll(Models.all(this));
            for (Model model : models) {
                if (Digit.suits(model)) {
                    readers.add(model);
                }
            }
        } catch (Exception error) {
            output.setText(String.valueOf(error));
        }
        Spinner chooser = findViewById(R.id.model);
        chooser.setAdapter(new ArrayAdapter<>(this, android.R.layout.simple_spinner_dropdown_item, models));
        View check = findViewById(R.id.check);
        check.setEnabled(!models.isEmpty());
        check.setOnClickListener(view -> check(Collections.singletonList((Model) chooser.getSelectedItem())));
        DigitView digit = findViewById(R.id.digit);
        findViewById(R.id.drawing).setVisibility(readers.isEmpty() ? View.GONE : View.VISIBLE);
        findViewById(R.id.classify).setOnClickListener(view -> classify(readers, digit.lines()));
        findViewById(R.id.clear).setOnClickListener(view -> digit.clear());
        if (getIntent().getBooleanExtra(CHECK, false)) {
            check(models);
        }
    }

    private void check(List<Model> models) {
        start(() -> {
            StringBuilder text = new StringBuilder();
            for (Outcome outcome : Models.check(this, models)) {
                text.append(describe(outcome)).append("\n\n");
            }
            return text.toString();
        });
    }

    private static String describe(Outcome outcome) {
        StringBuilder text = new StringBuilder();
        for (Map.Entry<String, Object> fact : outcome.facts.entrySet()) {
            text.append(String.format("%-10s %s\n", fact.getKey(), fact.getValue()));
        }
        if (outcome.outputs != null) {
            TensorData first = outcome.outputs.get(0);
            text.append("output     ").append(first);
            for (int i = 0; i < Math.min(4, first.count()); i++) {
                text.append(String.format(" %.4g", first.value(i)));
            }
        }
        return text.toString();
    }

    private void classify(List<Model> models, List<float[]> lines) {
        start(() -> {
            List<TensorData> image = Collections.singletonList(Digit.image(lines));
            StringBuilder text = new StringBuilder();
            for (Model model : models) {
                for (String file : model.programs) {
                    text.append(model).append(", ").append(file).append(": ");
                    try (Engine.Program program = Models.load(model, file)) {
                        TensorData logits = program.run(image).get(0);
                        text.append(logits.argmax(0, logits.count())).append('\n');
                    } catch (Exception | LinkageError error) {
                        text.append(error).append('\n');
                    }
                }
            }
            return text.toString();
        });
    }

    /** Runs a task in the background and shows its text. */
    private void start(Callable<String> task) {
        output.setText(R.string.running);
        BACKGROUND.execute(() -> {
            String text;
            try {
                text = task.call();
            } catch (Exception error) {
                text = String.valueOf(error);
            }
            String shown = text;
            runOnUiThread(() -> output.setText(shown));
        });
    }
}
