package qndeploy.demo;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import android.content.Intent;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.annotation.GraphicsMode;
import qndeploy.Outcome;

/** An app with hundreds of models, in each of which one file is damaged, missing, or another model's. */
@RunWith(RobolectricTestRunner.class)
@Config(sdk = 35)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
public class DamagedTest {
    private static final int LEAST = 200;

    @Test
    public void everyOneIsRefusedBeforeItIsLoaded() throws Exception {
        try (Screen screen = new Screen("w411dp-h891dp-port-notnight-hdpi", new Intent().putExtra("check", true))) {
            screen.untilRead();
            screen.until("checked", () -> screen.work().outcomes != null);
            assertTrue(screen.work().models.size() >= LEAST);
            for (String name : screen.work().models) {
                int refused = 0;
                for (Outcome outcome : screen.work().outcomes) {
                    if (outcome.facts.get("model").equals(name) && !outcome.verdict.passed) {
                        boolean explained = outcome.verdict.found.matches(".*( is not the file that was exported| is not among the app's assets).*");
                        assertTrue(name + ": " + outcome.verdict.found, explained);
                        assertFalse(outcome.toString(), outcome.facts.containsKey("load_us"));
                        assertTrue(name + " is not on the screen", screen.text().contains(outcome.verdict.found));
                        refused++;
                    }
                }
                assertEquals(name, 1, refused);
            }
            System.out.println(screen.work().models.size() + " damaged, missing or swapped files were refused");
            assertTrue(screen.text(R.id.headline), screen.text(R.id.headline).startsWith("FAIL: "));
        }
    }

    @Test
    public void oneFileIsDamaged() throws Exception {
        try (Screen screen = new Screen("w411dp-h891dp-port-notnight-hdpi", new Intent())) {
            screen.untilRead();
            screen.work().error = null; // of the others
            screen.check();
            screen.looksLike("damaged");
        }
    }
}
