package qndeploy.demo;

import static org.junit.Assert.assertFalse;

import android.content.Intent;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.robolectric.RobolectricTestRunner;
import org.robolectric.annotation.Config;
import org.robolectric.annotation.GraphicsMode;

/** An app into which no model was put. */
@RunWith(RobolectricTestRunner.class)
@Config(sdk = 35)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
public class EmptyTest {
    @Test
    public void saysWhatToDo() throws Exception {
        try (Screen screen = new Screen("w411dp-h891dp-port-notnight-hdpi", new Intent())) {
            screen.untilRead();
            assertFalse(screen.activity().findViewById(R.id.check).isEnabled());
            screen.looksLike("no_models");
        }
    }
}
