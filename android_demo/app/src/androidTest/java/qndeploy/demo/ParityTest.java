package qndeploy.demo;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;

import android.content.Context;
import androidx.test.ext.junit.runners.AndroidJUnit4;
import androidx.test.platform.app.InstrumentationRegistry;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.junit.Test;
import org.junit.runner.RunWith;
import qndeploy.AndroidAssets;
import qndeploy.Outcome;
import qndeploy.QnBuild;
import qndeploy.QnCheck;

/** Every program in the app, on this device, on its runtime: the verdict must be the one of `qn-deploy verify`. */
@RunWith(AndroidJUnit4.class)
public class ParityTest {
    @Test
    public void everyProgramPasses() throws Exception {
        Context context = InstrumentationRegistry.getInstrumentation().getTargetContext();
        List<String> models = QnBuild.names(new AndroidAssets(context.getAssets()));
        List<Outcome> outcomes = QnCheck.run(context, models, (model, file) -> {});
        assertFalse("no model: qn-deploy android BUILD --app android_demo", outcomes.isEmpty());
        List<String> failed = new ArrayList<>();
        for (Outcome outcome : outcomes) {
            if (!outcome.verdict.passed) {
                failed.add(outcome.toString());
            }
        }
        assertEquals(Collections.<String>emptyList(), failed);
    }
}
