package qndeploy.demo;

import android.app.Activity;
import android.content.res.Configuration;
import android.os.Build;
import android.os.Bundle;
import android.text.format.Formatter;
import android.view.View;
import android.view.ViewGroup;
import android.widget.ArrayAdapter;
import android.widget.LinearLayout;
import android.widget.Spinner;
import android.widget.TextView;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import qndeploy.Outcome;

/** Checks models on this device and reads drawn digits. With the extra "check" it checks all models at once. */
public final class MainActivity extends Activity {
    private static final String CHECK = "check"; // adb shell am start -n qndeploy.demo/.MainActivity --ez check true
    private Work work;
    private List<String> shownModels;
    private List<Outcome> shownOutcomes;

    @Override
    protected void onCreate(Bundle state) {
        super.onCreate(state);
        setContentView(R.layout.main);
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
            getWindow().setDecorFitsSystemWindows(false); // edge to edge; the page itself keeps clear of the bars
        }
        boolean wide = getResources().getConfiguration().orientation == Configuration.ORIENTATION_LANDSCAPE;
        if (wide) {
            placeSideBySide(findViewById(R.id.columns));
        }
        DigitView digit = findViewById(R.id.digit);
        findViewById(R.id.clear).setOnClickListener(view -> digit.clear());
        Spinner chooser = findViewById(R.id.model);
        findViewById(R.id.check).setOnClickListener(view -> work.check(Collections.singletonList((String) chooser.getSelectedItem())));
        work = (Work) getLastNonConfigurationInstance();
        if (work == null) {
            work = new Work(this);
            work.start(state == null && getIntent().getBooleanExtra(CHECK, false)); // a restored Activity was asked before
        }
        digit.onChange(() -> work.read(digit.lines()));
        work.listen(this::show);
        show();
    }

    @Override
    public Object onRetainNonConfigurationInstance() {
        return work; // goes on while the Activity is made anew
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        work.listen(() -> {});
        if (!isChangingConfigurations()) {
            work.close();
        }
    }

    @Override
    public void onTrimMemory(int level) {
        super.onTrimMemory(level);
        work.trim();
    }

    private void show() {
        boolean isReading = work.models == null;
        boolean isChecking = work.running != null;
        Spinner chooser = findViewById(R.id.model);
        if (work.models != null && work.models != shownModels) {
            shownModels = work.models;
            int chosen = chooser.getSelectedItemPosition();
            chooser.setAdapter(new ArrayAdapter<>(this, android.R.layout.simple_spinner_dropdown_item, shownModels));
            chooser.setSelection(Math.max(0, Math.min(chosen, shownModels.size() - 1)));
            if (!work.digitModels.isEmpty()) {
                work.read(((DigitView) findViewById(R.id.digit)).lines());
            }
        }
        boolean isIdle = !isReading && !isChecking && !shownModels.isEmpty();
        chooser.setEnabled(isIdle);
        findViewById(R.id.check).setEnabled(isIdle);
        setVisible(R.id.progress, isReading || isChecking);
        setText(R.id.status, isReading ? getString(R.string.reading) : isChecking ? getString(R.string.checking, work.running) : "");
        setText(R.id.error, work.error != null ? work.error : isReading || !shownModels.isEmpty() ? "" : getString(R.string.no_models));
        showOutcomes();
        setVisible(R.id.drawing, !work.digitModels.isEmpty());
        showReadings();
    }

    private void showOutcomes() {
        if (work.outcomes == shownOutcomes) {
            return;
        }
        shownOutcomes = work.outcomes;
        ViewGroup cards = findViewById(R.id.cards);
        cards.removeAllViews();
        int failed = 0;
        for (Outcome outcome : shownOutcomes == null ? Collections.<Outcome>emptyList() : shownOutcomes) {
            failed += outcome.verdict.passed ? 0 : 1;
            cards.addView(card(cards, outcome));
        }
        int all = cards.getChildCount();
        String text = failed == 0 ? getString(R.string.all_passed, all) : getString(R.string.some_failed, failed, all);
        setText(R.id.headline, all == 0 ? "" : text);
        ((TextView) findViewById(R.id.headline)).setTextColor(getColor(failed == 0 ? R.color.pass : R.color.fail));
    }

    private View card(ViewGroup parent, Outcome outcome) {
        View card = getLayoutInflater().inflate(R.layout.card, parent, false);
        Map<String, Object> facts = outcome.facts;
        boolean passed = outcome.verdict.passed;
        TextView verdict = card.findViewById(R.id.verdict);
        verdict.setText(passed ? R.string.pass : R.string.fail);
        verdict.setTextColor(getColor(passed ? R.color.pass : R.color.fail));
        String file = ((String) facts.get("file")).replace(",", ", ");
        ((TextView) card.findViewById(R.id.title)).setText(file.isEmpty() ? (String) facts.get("model") : file);
        ((TextView) card.findViewById(R.id.runtime)).setText(String.format("%s · %s", facts.get("model"), facts.get("runtime")));
        ViewGroup rows = card.findViewById(R.id.rows);
        row(rows, R.string.agreement, passed ? outcome.verdict.found : outcome.verdict.found + getString(R.string.expected, outcome.verdict.limit));
        if (facts.containsKey("file_bytes")) {
            row(rows, R.string.size, Formatter.formatShortFileSize(this, (Long) facts.get("file_bytes")));
        }
        if (facts.containsKey("p50_us")) {
            row(rows, R.string.memory, Formatter.formatShortFileSize(this, (Long) facts.get("ram_bytes")));
            row(rows, R.string.load, milliseconds(facts.get("load_us")));
            row(rows, R.string.run, getString(R.string.percentiles, milliseconds(facts.get("p50_us")), milliseconds(facts.get("p90_us"))));
        }
        return card;
    }

    private void row(ViewGroup rows, int label, String value) {
        View row = getLayoutInflater().inflate(R.layout.row, rows, false);
        ((TextView) row.findViewById(R.id.label)).setText(label);
        ((TextView) row.findViewById(R.id.value)).setText(value);
        rows.addView(row);
    }

    private void showReadings() {
        boolean isEmpty = ((DigitView) findViewById(R.id.digit)).lines().isEmpty();
        double[] shares = new double[10];
        StringBuilder each = new StringBuilder();
        String digit = "";
        for (Work.Reading reading : work.readings) {
            String said = reading.shares == null ? reading.error : said(reading);
            each.append(each.length() > 0 ? "\n" : "").append(getString(R.string.reading_of, reading.program, said));
            if (digit.isEmpty() && reading.shares != null) { // bars and headline are the first program's
                shares = reading.shares;
                digit = reading.isSure() ? String.valueOf(reading.digit()) : getString(R.string.unclear);
            }
        }
        setText(R.id.read, isEmpty ? getString(R.string.nothing_drawn) : digit.isEmpty() ? getString(R.string.unclear) : digit);
        setText(R.id.readings, isEmpty ? "" : each.toString());
        BarsView bars = findViewById(R.id.bars);
        bars.show(isEmpty ? new double[10] : shares);
        bars.setContentDescription(getString(R.string.bars, ((TextView) findViewById(R.id.read)).getText()));
        findViewById(R.id.digit).setContentDescription(getString(isEmpty ? R.string.pad_empty : R.string.pad));
        findViewById(R.id.clear).setEnabled(!isEmpty);
    }

    private String said(Work.Reading reading) {
        String percent = String.valueOf(Math.round(100 * reading.shares[reading.digit()]));
        return getString(R.string.sure, String.valueOf(reading.digit()), percent);
    }

    private static String milliseconds(Object micros) {
        double milliseconds = (Long) micros / 1000.0;
        return String.format(Locale.getDefault(), milliseconds < 10 ? "%.2f ms" : "%.0f ms", milliseconds);
    }

    private void setText(int view, String text) {
        ((TextView) findViewById(view)).setText(text);
        setVisible(view, !text.isEmpty());
    }

    private void setVisible(int view, boolean visible) {
        findViewById(view).setVisibility(visible ? View.VISIBLE : View.GONE);
    }

    private static void placeSideBySide(LinearLayout columns) {
        columns.setOrientation(LinearLayout.HORIZONTAL);
        for (int i = 0; i < columns.getChildCount(); i++) {
            columns.getChildAt(i).setLayoutParams(new LinearLayout.LayoutParams(0, ViewGroup.LayoutParams.WRAP_CONTENT, 1));
        }
    }
}
