package qndeploy.demo;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import android.app.Activity;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.Canvas;
import android.graphics.Color;
import android.os.Looper;
import android.os.SystemClock;
import android.view.MotionEvent;
import android.view.View;
import android.view.ViewGroup;
import android.widget.TextView;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.function.BooleanSupplier;
import org.robolectric.Robolectric;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.Shadows;
import org.robolectric.android.controller.ActivityController;
import qndeploy.Outcome;

/** The app's one Activity, as a user sees and touches it. */
final class Screen implements AutoCloseable {
    private static final File STORED = new File(System.getProperty("qn.screens"));
    private static final File FOUND = new File(System.getProperty("qn.screens.found"));
    private static final double MAX_DIFFERING = 0.01; // share of pixels: another digit of a figure is less, another line of text more
    private static final int MAX_STEP = 64; // of a colour channel
    private static final int PATIENCE_S = 300; // of a loaded machine
    private final ActivityController<MainActivity> controller;
    private final List<String> differences = new ArrayList<>(); // told at the end, so that one run makes all pictures

    /** Starts the app on a device with these qualifiers; `intent` is as `adb shell am start` gives it. */
    Screen(String qualifiers, Intent intent) {
        RuntimeEnvironment.setQualifiers(qualifiers);
        controller = Robolectric.buildActivity(MainActivity.class, intent).setup();
    }

    MainActivity activity() {
        return controller.get();
    }

    ActivityController<MainActivity> controller() {
        return controller;
    }

    Work work() {
        return (Work) activity().onRetainNonConfigurationInstance();
    }

    /** Lets the main thread work until this holds. */
    void until(String what, BooleanSupplier holds) throws InterruptedException {
        for (long end = System.nanoTime() + PATIENCE_S * 1_000_000_000L; System.nanoTime() < end; Thread.sleep(20)) {
            Shadows.shadowOf(Looper.getMainLooper()).idle();
            if (holds.getAsBoolean()) {
                return;
            }
        }
        throw new AssertionError("after " + PATIENCE_S + " s: not " + what + "; on the screen:\n" + text());
    }

    void untilRead() throws InterruptedException {
        until("the models are read", () -> work().models != null);
    }

    /** Presses the button and waits for the verdicts. */
    void check() throws InterruptedException {
        press(R.id.check);
        untilChecked();
    }

    void untilChecked() throws InterruptedException {
        until("checked", () -> work().outcomes != null);
        showSameFigures();
    }

    /** Times and memory differ from run to run: the screen gets the same ones always. */
    private void showSameFigures() {
        List<Outcome> same = new ArrayList<>(work().outcomes);
        for (Outcome outcome : same) {
            LinkedHashMap<String, Object> facts = new LinkedHashMap<>(outcome.facts);
            facts.keySet().retainAll(List.of("ram_bytes", "load_us", "p50_us", "p90_us"));
            facts.replaceAll((name, value) -> name.equals("ram_bytes") ? 1_234_567L : name.equals("load_us") ? 12_345L : 123L);
            outcome.facts.putAll(facts);
        }
        work().outcomes = same;
        work().listen(() -> {});
        controller.recreate(); // shows them, and has everything outlive one more rotation
        Shadows.shadowOf(Looper.getMainLooper()).idle();
    }

    void press(int id) {
        assertTrue("the button is on", activity().findViewById(id).isEnabled());
        assertTrue(activity().findViewById(id).performClick());
    }

    /** Draws a digit of a style with a finger, after a press of Clear if there is something. */
    void draw(int style, int digit) throws InterruptedException {
        DigitView pad = activity().findViewById(R.id.digit);
        if (!pad.lines().isEmpty()) {
            press(R.id.clear);
        }
        for (float[][] stroke : Styles.strokes(style, digit)) {
            touch(stroke);
        }
        until("read", () -> !work().readings.isEmpty());
    }

    /** One stroke of a finger on the pad, by points in units of its side. */
    void touch(float[]... points) {
        View pad = activity().findViewById(R.id.digit);
        long start = SystemClock.uptimeMillis();
        for (int i = 0; i < points.length; i++) {
            send(pad, start, i, i == 0 ? MotionEvent.ACTION_DOWN : MotionEvent.ACTION_MOVE, points[i]);
        }
        send(pad, start, points.length, MotionEvent.ACTION_UP, points[points.length - 1]);
    }

    private static void send(View pad, long start, int number, int action, float[] at) {
        MotionEvent event = MotionEvent.obtain(start, start + 10 * number, action, at[0] * pad.getWidth(), at[1] * pad.getHeight(), 0);
        pad.dispatchTouchEvent(event);
        event.recycle();
    }

    String text(int id) {
        TextView view = activity().findViewById(id);
        return view.getVisibility() == View.VISIBLE ? view.getText().toString() : "";
    }

    /** All text that is not hidden, a line for each view. */
    String text() {
        StringBuilder text = new StringBuilder();
        for (View view : views()) {
            if (view instanceof TextView && view.isShown()) {
                text.append(((TextView) view).getText()).append('\n');
            }
        }
        return text.toString();
    }

    List<View> views() {
        List<View> views = new ArrayList<>();
        collect(activity().getWindow().getDecorView(), views);
        return views;
    }

    private static void collect(View view, List<View> views) {
        views.add(view);
        for (int i = 0; view instanceof ViewGroup && i < ((ViewGroup) view).getChildCount(); i++) {
            collect(((ViewGroup) view).getChildAt(i), views);
        }
    }

    /** Hashes are those of the model, whose training rounds in another way on another processor: the screen gets the same one always. */
    private void showSameHashes() {
        for (View view : views()) {
            if (view instanceof TextView) {
                String text = ((TextView) view).getText().toString();
                String same = text.replaceAll("[0-9a-f]{64}", "0123456789abcdef".repeat(4));
                if (!same.equals(text)) {
                    ((TextView) view).setText(same);
                }
            }
        }
    }

    /** The whole page, from its top to its end, compared with the stored picture of this name. */
    void looksLike(String name) throws IOException {
        View page = ((ViewGroup) activity().findViewById(android.R.id.content)).getChildAt(0);
        View content = ((ViewGroup) page).getChildAt(0);
        showSameHashes();
        int exactly = View.MeasureSpec.EXACTLY; // the last change may not be laid out yet
        page.measure(View.MeasureSpec.makeMeasureSpec(page.getWidth(), exactly), View.MeasureSpec.makeMeasureSpec(page.getHeight(), exactly));
        page.layout(page.getLeft(), page.getTop(), page.getRight(), page.getBottom());
        Bitmap found = Bitmap.createBitmap(page.getWidth(), Math.max(page.getHeight(), content.getHeight()), Bitmap.Config.ARGB_8888);
        Canvas canvas = new Canvas(found);
        canvas.drawColor(activity().getColor(R.color.page));
        content.draw(canvas);
        FOUND.mkdirs();
        try (FileOutputStream out = new FileOutputStream(new File(FOUND, name + ".png"))) {
            found.compress(Bitmap.CompressFormat.PNG, 100, out);
        }
        File stored = new File(STORED, name + ".png");
        double differing = stored.isFile() ? differing(BitmapFactory.decodeFile(stored.getPath()), found) : 1;
        if (differing > MAX_DIFFERING) {
            differences.add(String.format("%.1f %% of %s differ from %s", 100 * differing, new File(FOUND, name + ".png"), stored));
        }
    }

    private static double differing(Bitmap stored, Bitmap found) {
        if (stored.getWidth() != found.getWidth() || stored.getHeight() != found.getHeight()) {
            return 1;
        }
        int count = 0;
        for (int y = 0; y < found.getHeight(); y++) {
            for (int x = 0; x < found.getWidth(); x++) {
                int a = stored.getPixel(x, y);
                int b = found.getPixel(x, y);
                int step = Math.max(Math.abs(Color.red(a) - Color.red(b)), Math.abs(Color.green(a) - Color.green(b)));
                count += Math.max(step, Math.abs(Color.blue(a) - Color.blue(b))) > MAX_STEP ? 1 : 0;
            }
        }
        return (double) count / found.getWidth() / found.getHeight();
    }

    @Override
    public void close() {
        controller.pause().stop().destroy();
        assertEquals("pictures; look at them, and store what is right", List.of(), differences);
    }
}
