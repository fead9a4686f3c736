package qndeploy.ort;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.io.IOException;
import java.util.Collection;
import java.util.Collections;
import java.util.Map;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.junit.runners.Parameterized;
import qndeploy.core.Engine;
import qndeploy.core.Fixtures;
import qndeploy.core.Model;
import qndeploy.core.Outcome;
import qndeploy.core.Runner;

/** Every .onnx of the fixtures: the same verdict in the same words as Python's. */
@RunWith(Parameterized.class)
public class OrtEngineTest {
    private final String program;
    private final Model model;
    private final String file;

    public OrtEngineTest(String program, Model model, String file) {
        this.program = program;
        this.model = model;
        this.file = file;
    }

    @Parameterized.Parameters(name = "{0}")
    public static Collection<Object[]> programs() throws IOException {
        return Fixtures.programs(new OrtEngine());
    }

    @Test
    public void agreesWithPython() throws IOException {
        for (Outcome outcome : new Runner(Collections.<Engine>singletonList(new OrtEngine()), 3).run(model)) {
            if (outcome.file.equals(file)) {
                Map<String, Object> expected = Fixtures.expected(program);
                assertEquals(Fixtures.words(expected.get("found").toString()), Fixtures.words(outcome.verdict.found));
                assertEquals(expected.get("passed"), outcome.verdict.passed);
                assertTrue(outcome.line(), outcome.figures.get("p50_us") <= outcome.figures.get("p90_us"));
                assertTrue(outcome.line(), outcome.figures.get("file_bytes") > 0 && outcome.figures.get("load_us") > 0);
            }
        }
    }
}
