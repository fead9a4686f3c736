package qndeploy.demo;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNotSame;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertTrue;

import android.content.ComponentCallbacks2;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;
import android.widget.Button;
import android.widget.Spinner;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.Robolectric;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.RuntimeEnvironment;
import org.robolectric.android.controller.ActivityController;
import org.robolectric.annotation.Config;
import org.robolectric.annotation.GraphicsMode;
import org.robolectric.shadows.ShadowLog;
import qndeploy.QnCheck;

/** An app with two whole models, one of which reads digits. */
@RunWith(RobolectricTestRunner.class)
@Config(sdk = 35)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
public class GoodTest {
    private static final String PHONE = "w411dp-h891dp-port-notnight-hdpi";

    private static Screen open(String qualifiers) throws Exception {
        RuntimeEnvironment.setFontScale(1);
        Screen screen = new Screen(qualifiers, new Intent());
        screen.untilRead();
        return screen;
    }

    @Test
    public void start() throws Exception {
        try (Screen screen = open(PHONE)) {
            assertEquals("Nothing drawn", screen.text(R.id.read));
            screen.looksLike("start");
            screen.work().models = null; // as before they are read, which is over soon
            screen.controller().recreate();
            assertFalse(screen.activity().findViewById(R.id.check).isEnabled());
            screen.looksLike("reading");
        }
    }

    @Test
    public void check() throws Exception {
        try (Screen screen = open(PHONE)) {
            screen.press(R.id.check);
            assertFalse(screen.activity().findViewById(R.id.check).isEnabled());
            screen.work().check(screen.work().models); // pressed in vain: it runs
            screen.looksLike("checking");
            screen.untilChecked();
            assertEquals("PASS: all 3 checks", screen.text(R.id.headline));
            assertTrue(screen.text(), screen.text().contains("bit-identical") && screen.text().contains("model.stock.qnz"));
            screen.looksLike("checked");
        }
    }

    @Test
    public void theSecondModel() throws Exception {
        try (Screen screen = open(PHONE)) {
            ((Spinner) screen.activity().findViewById(R.id.model)).setSelection(1);
            screen.check();
            assertTrue(screen.text(), screen.text().contains("small · onnxruntime"));
            screen.looksLike("second_model");
        }
    }

    @Test
    public void drawing() throws Exception {
        try (Screen screen = open(PHONE)) {
            screen.touch(new float[] {.5f, .5f});
            screen.until("a dot is unclear", () -> screen.text(R.id.read).equals("Unclear"));
            screen.looksLike("dot");
            for (int digit = 0; digit < 10; digit++) {
                screen.draw(0, digit);
                String expected = String.valueOf(digit);
                screen.until("a drawn " + digit + " is read", () -> screen.text(R.id.read).equals(expected));
                assertTrue(screen.text(R.id.readings), screen.text(R.id.readings).contains("model.stock.qnz: " + digit));
                if (digit == 7) {
                    screen.looksLike("seven");
                }
            }
            screen.press(R.id.clear);
            screen.until("nothing is drawn", () -> screen.text(R.id.read).equals("Nothing drawn"));
            for (int i = 0; i <= 30; i++) {
                screen.touch(new float[] {0, i / 30f}, new float[] {1, i / 30f});
            }
            screen.until("a full pad is unclear", () -> screen.text(R.id.read).equals("Unclear"));
            screen.looksLike("full_pad");
        }
    }

    /** Work and results outlive a rotation in the middle; the extra asks once. */
    @Test
    public void rotation() throws Exception {
        RuntimeEnvironment.setFontScale(1);
        ShadowLog.clear();
        try (Screen screen = new Screen(PHONE, new Intent().putExtra("check", true))) {
            Work work = screen.work();
            screen.controller().recreate();
            screen.untilRead();
            screen.controller().recreate();
            assertSame(work, screen.work());
            screen.untilChecked();
            screen.draw(0, 5);
            screen.until("read", () -> screen.text(R.id.read).equals("5"));
            String before = screen.text();
            MainActivity activity = screen.activity();
            RuntimeEnvironment.setQualifiers("w891dp-h411dp-land");
            screen.controller().recreate(); // as Android does when the display turns
            assertNotSame(activity, screen.activity());
            screen.until("read again", () -> screen.text(R.id.read).equals("5"));
            assertEquals(before, screen.text());
            screen.looksLike("landscape");
            long done = ShadowLog.getLogsForTag(QnCheck.TAG).stream().filter(line -> line.msg.startsWith("DONE")).count();
            assertEquals(1, done);
        }
    }

    /** The process ended meanwhile: the drawing comes back, and the extra of the intent does not ask again. */
    @Test
    public void aNewProcess() throws Exception {
        Bundle state = new Bundle();
        Intent intent = new Intent().putExtra("check", true);
        try (Screen screen = new Screen(PHONE, intent)) {
            screen.untilChecked();
            screen.draw(0, 3);
            screen.controller().pause().stop().saveInstanceState(state);
        }
        ActivityController<MainActivity> again = Robolectric.buildActivity(MainActivity.class, intent).setup(state);
        Work work = (Work) again.get().onRetainNonConfigurationInstance();
        for (int i = 0; i < 500 && work.readings.isEmpty(); i++) {
            Thread.sleep(20);
            org.robolectric.Shadows.shadowOf(android.os.Looper.getMainLooper()).idle();
        }
        assertEquals(3, work.readings.get(0).digit());
        assertTrue(work.running == null && work.outcomes == null);
        again.pause().stop().destroy();
    }

    @Test
    public void backAndLowMemory() throws Exception {
        try (Screen screen = open(PHONE)) {
            screen.draw(0, 2);
            screen.activity().onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_COMPLETE);
            screen.draw(0, 8);
            screen.until("read after the programs were given back", () -> screen.text(R.id.read).equals("8"));
            screen.press(R.id.check);
            screen.activity().onBackPressed(); // in the middle of a check
            assertTrue(screen.activity().isFinishing());
        }
        try (Screen screen = open(PHONE)) {
            screen.looksLike("start");
        }
    }

    private static void both(String qualifiers, float fonts, String name) throws Exception {
        RuntimeEnvironment.setFontScale(fonts);
        try (Screen screen = new Screen(qualifiers, new Intent())) {
            screen.untilRead();
            screen.check();
            screen.draw(0, 7);
            screen.until("read", () -> screen.text(R.id.read).equals("7"));
            screen.looksLike(name);
            for (View view : screen.views()) {
                boolean isTarget = view instanceof Button || view instanceof Spinner || view instanceof DigitView;
                float side = Math.min(view.getWidth(), view.getHeight()) / view.getResources().getDisplayMetrics().density;
                assertTrue(view + " of " + side + " dp is too small to touch", !isTarget || side >= 48);
                assertTrue(view + " says nothing to who can't see it", !(view instanceof DigitView) || view.getContentDescription() != null);
                assertTrue(view + " is cut off", !(view instanceof android.widget.TextView) || fits((android.widget.TextView) view));
            }
            assertNotNull(screen.activity().findViewById(R.id.bars).getContentDescription());
        }
    }

    private static boolean fits(android.widget.TextView view) {
        return !view.isShown() || view.getLayout() == null || view.getLayout().getHeight() <= view.getHeight();
    }

    @Test
    public void dark() throws Exception {
        both("w411dp-h891dp-port-night-hdpi", 1, "dark");
    }

    @Test
    public void largeFonts() throws Exception {
        both(PHONE, 2, "large_fonts");
    }

    @Test
    public void rightToLeft() throws Exception {
        both("ar-rXB-ldrtl-w411dp-h891dp-port-notnight-hdpi", 1, "right_to_left");
    }

    @Test
    public void narrow() throws Exception {
        both("w320dp-h480dp-port-notnight-hdpi", 1, "narrow");
    }

    @Test
    public void narrowWithLargeFonts() throws Exception {
        both("w320dp-h480dp-port-night-hdpi", 1.5f, "narrow_large_dark");
    }

    @Test
    public void tablet() throws Exception {
        both("w1280dp-h800dp-land-notnight-mdpi", 1, "tablet");
    }
}
