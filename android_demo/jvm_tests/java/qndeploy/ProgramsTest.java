package qndeploy;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.json.JSONObject;
import org.junit.Test;
import org.junit.runner.RunWith;
import org.junit.runners.Parameterized;

/** Every program of the fixtures on the runtimes' Android libraries: the same verdict in the same words as Python's. */
@RunWith(Parameterized.class)
public class ProgramsTest {
    private final QnBuild model;
    private final String file;

    public ProgramsTest(String name, QnBuild model, String file) {
        this.model = model;
        this.file = file;
    }

    @Parameterized.Parameters(name = "{0}")
    public static List<Object[]> programs() throws Exception {
        List<Object[]> programs = new ArrayList<>();
        for (QnBuild model : Fixtures.models()) {
            for (String file : model.programs) {
                programs.add(new Object[] {model.name + "/" + file, model, file});
            }
        }
        return programs;
    }

    @Test
    public void agreesWithPython() throws Exception {
        Outcome outcome = new Runner(Runtimes::load, 3).run(model, file);
        JSONObject expected = Fixtures.json("expected.json").getJSONObject(model.name + "/" + file);
        assertEquals(words(expected.getString("found")), words(outcome.verdict.found));
        assertEquals(expected.getString("limit"), outcome.verdict.limit);
        assertEquals(expected.getBoolean("passed"), outcome.verdict.passed);
        Map<String, Object> facts = outcome.facts;
        assertTrue(outcome.toString(), (Long) facts.get("p50_us") <= (Long) facts.get("p90_us"));
        assertTrue(outcome.toString(), (Long) facts.get("file_bytes") > 0 && (Long) facts.get("load_us") > 0);
        assertEquals(outcome.toString(), model.manifest.isBatched ? 1L : model.golden("input").get(0).shape[0], facts.get("batch"));
    }

    /** Without the decibels of float results that agree to all digits that count: another release sums in another order. */
    private static String words(String found) {
        return found.replaceAll("SQNR 1[0-9][0-9]\\.[0-9] dB", "SQNR > 100 dB");
    }
}
