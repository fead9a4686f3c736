package qndeploy.demo;

import android.app.Activity;
import android.graphics.Typeface;
import android.os.Bundle;
import android.view.View;
import android.widget.AdapterView;
import android.widget.ArrayAdapter;
import android.widget.Button;
import android.widget.LinearLayout;
import android.widget.ScrollView;
import android.widget.Spinner;
import android.widget.TextView;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import qndeploy.core.Digit;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.Outcome;

/** Chooses a model, checks it on this device, and classifies drawn digits. With the extra "check" it checks all models at once. */
public final class MainActivity extends Activity implements AdapterView.OnItemSelectedListener {
    private static final String CHECK = "check"; // adb shell am start -n qndeploy.demo/.MainActivity --ez check true

    /** Work for the background, whose text is then shown. */
    private interface Task {
        String run() throws Exception;
    }

    private final ExecutorService background = Executors.newSingleThreadExecutor();
    private List<Model> models = Collections.emptyList();
    private Spinner chooser;
    private View drawing;
    private TextView output;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        output = new TextView(this);
        output.setTypeface(Typeface.MONOSPACE);
        output.setTextIsSelectable(true);
        try {
            models = Models.all(this);
        } catch (Exception error) {
            output.setText(String.valueOf(error));
        }
        List<String> names = new ArrayList<>();
        for (Model model : models) {
            names.add(model.name);
        }
        chooser = new Spinner(this);
        chooser.setAdapter(new ArrayAdapter<>(this, android.R.layout.simple_spinner_dropdown_item, names));
        chooser.setOnItemSelectedListener(this);
        DigitView digit = new DigitView(this);
        int side = (int) (240 * getResources().getDisplayMetrics().density);
        digit.setLayoutParams(new LinearLayout.LayoutParams(side, side));
        Button classify = button(R.string.classify, () -> classify(chosen(), digit.strokes()));
        drawing = column(digit, classify, button(R.string.clear, digit::clear));
        Button check = button(R.string.check, () -> check(Collections.singletonList(chosen())));
        check.setEnabled(!models.isEmpty());
        ScrollView page = new ScrollView(this);
        page.addView(column(chooser, check, output, drawing));
        page.setFitsSystemWindows(true);
        setContentView(page);
        onNothingSelected(chooser);
        if (getIntent().getBooleanExtra(CHECK, false)) {
            check(models);
        }
    }

    private Model chosen() {
        return models.get(chooser.getSelectedItemPosition());
    }

    @Override
    protected void onDestroy() {
        background.shutdown();
        super.onDestroy();
    }

    @Override
    public void onItemSelected(AdapterView<?> parent, View view, int position, long id) {
        try {
            drawing.setVisibility(Digit.suits(models.get(position)) ? View.VISIBLE : View.GONE);
        } catch (Exception error) {
            output.setText(String.valueOf(error));
        }
    }

    @Override
    public void onNothingSelected(AdapterView<?> parent) {
        drawing.setVisibility(View.GONE);
    }

    private void check(List<Model> chosen) {
        start(() -> {
            StringBuilder text = new StringBuilder();
            for (Outcome outcome : Models.check(this, chosen)) {
                text.append(describe(outcome)).append("\n\n");
            }
            return text.toString();
        });
    }

    private void classify(Model model, List<float[]> strokes) {
        start(() -> {
            StringBuilder text = new StringBuilder();
            for (String file : model.files) {
                for (Engine engine : Models.ENGINES) {
                    text.append(engine.takes(file) ? file + ": " + answer(engine, model, file, strokes) + "\n" : "");
                }
            }
            return text.toString();
        });
    }

    private static String answer(Engine engine, Model model, String file, List<float[]> strokes) {
        try (Engine.Session session = engine.load(model, file)) {
            return String.valueOf(Digit.answer(session.run(Collections.singletonList(Digit.image(strokes)))));
        } catch (Exception | LinkageError error) {
            return String.valueOf(error);
        }
    }

    private static String describe(Outcome outcome) {
        StringBuilder text = new StringBuilder();
        text.append(outcome.verdict.passed ? "PASS " : "FAIL ").append(outcome.file).append("\n  ").append(outcome.runtime);
        text.append("\n  ").append(outcome.verdict.found).append(" (limit: ").append(outcome.verdict.limit).append(')');
        for (String name : outcome.figures.keySet()) {
            text.append(String.format(Locale.ROOT, "\n  %-10s %,d", name, outcome.figures.get(name)));
        }
        if (outcome.outputs != null) {
            text.append("\n  output     ").append(outcome.outputs.get(0).form());
            for (int i = 0; i < Math.min(4, outcome.outputs.get(0).count()); i++) {
                text.append(String.format(Locale.ROOT, " %.4g", outcome.outputs.get(0).value(i)));
            }
        }
        return text.toString();
    }

    private void start(Task task) {
        output.setText(R.string.running);
        background.execute(() -> {
            String text;
            try {
                text = task.run();
            } catch (Exception error) {
                text = String.valueOf(error);
            }
            String shown = text;
            runOnUiThread(() -> output.setText(shown));
        });
    }

    private Button button(int label, Runnable pressed) {
        Button button = new Button(this);
        button.setText(label);
        button.setOnClickListener(view -> pressed.run());
        return button;
    }

    private LinearLayout column(View... views) {
        LinearLayout column = new LinearLayout(this);
        column.setOrientation(LinearLayout.VERTICAL);
        for (View view : views) {
            column.addView(view);
        }
        return column;
    }
}
