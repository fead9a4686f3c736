package qndeploy;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.json.JSONObject;
import org.junit.Test;

public class QnBuildTest {
    /** The fixtures with one bit of one file flipped, whatever the length of it. */
    private static QnBuild.Assets damaged(String file) {
        return path -> {
            byte[] data = Fixtures.read(path);
            if (path.endsWith("/" + file)) {
                data[data.length / 2] ^= 1;
            }
            return ByteBuffer.wrap(data);
        };
    }

    /** No runtime ever sees the bytes of a damaged program. */
    private static Engine.Program untouched(QnBuild model, String file) throws Exception {
        model.read(file);
        throw new AssertionError("loaded " + file);
    }

    @Test
    public void aDamagedManifestOrReferenceIsRefused() throws Exception {
        for (String file : new String[] {"manifest.json", "golden.safetensors"}) {
            try {
                Fixtures.models(damaged(file));
                fail(file);
            } catch (BadFileException expected) {
                assertTrue(expected.getMessage(), expected.getMessage().contains(file + " is not the file that was exported"));
            }
        }
    }

    @Test
    public void aDamagedProgramIsRefusedBeforeItIsLoaded() throws Exception {
        for (String file : new String[] {"model.onnx", "model.stock.qnz"}) {
            for (QnBuild model : Fixtures.models(damaged(file))) {
                if (model.programs.contains(file)) {
                    Outcome outcome = new Runner(QnBuildTest::untouched, 1).run(model, file);
                    assertFalse(outcome.verdict.passed);
                    assertTrue(outcome.verdict.found, outcome.verdict.found.contains(file + " is not the file that was exported"));
                }
            }
        }
    }

    @Test
    public void aDamagedSidecarIsRefused() throws Exception {
        int found = 0;
        for (QnBuild model : Fixtures.models(damaged(ShellForm.SIDECAR))) {
            if (model.programs.contains(ShellForm.SHELL)) {
                found++;
                try {
                    model.read(ShellForm.SIDECAR);
                    fail(model.name);
                } catch (BadFileException expected) {
                    assertTrue(expected.getMessage().contains(ShellForm.SIDECAR + " is not the file that was exported"));
                }
            }
        }
        assertTrue(found > 0);
    }

    @Test
    public void aFileThatTheManifestDoesNotListIsRefused() throws Exception {
        try {
            Fixtures.models().get(0).read("../../expected.json");
            fail();
        } catch (BadFileException expected) {
            assertTrue(expected.getMessage().contains("not listed"));
        }
    }

    /** The signature of the APK holds the index; should it be cut off all the same, that is an error and no crash. */
    @Test
    public void anIndexThatIsNoJsonIsRefused() throws Exception {
        try {
            Fixtures.models(path -> ByteBuffer.wrap("{\"models\": {".getBytes(StandardCharsets.UTF_8)));
            fail();
        } catch (BadFileException expected) {
            assertTrue(expected.getMessage(), expected.getMessage().startsWith("models/index.json is damaged: "));
        }
    }

    /** Where a runtime takes one batch only, that is what is measured. */
    @Test
    public void aProgramOfAFixedSizeIsNotBatched() throws Exception {
        JSONObject manifest = Fixtures.json("models/linear-static/manifest.json");
        assertTrue(new Manifest(bytes(manifest)).isBatched);
        JSONObject facts = manifest.getJSONObject("files").getJSONObject("model.pte").getJSONObject("facts");
        facts.put("x, dimension 1, takes only", "16");
        assertTrue(new Manifest(bytes(manifest)).isBatched);
        facts.put("x, dimension 0, takes only", "8");
        assertFalse(new Manifest(bytes(manifest)).isBatched);
    }

    /** Another format than this app reads is refused by name. */
    @Test
    public void aManifestOfAnotherVersionIsRefused() throws Exception {
        JSONObject manifest = Fixtures.json("models/linear-static/manifest.json");
        try {
            new Manifest(bytes(manifest.put("version", 2)));
            fail();
        } catch (BadFileException expected) {
            assertEquals("manifest.json of format qn-deploy build 2, expected qn-deploy build 5", expected.getMessage());
        }
    }

    private static ByteBuffer bytes(JSONObject object) {
        return ByteBuffer.wrap(object.toString().getBytes(StandardCharsets.UTF_8));
    }

    /** A missing runtime is a verdict, no crash; the report stays one line and valid JSON. */
    @Test
    public void aMissingRuntimeFails() throws Exception {
        Engine missing = (model, file) -> {
            throw new UnsatisfiedLinkError("no \"library\"\nhere");
        };
        List<Outcome> outcomes = new Runner(missing, 1).run(Fixtures.models().get(0));
        String line = outcomes.get(0).toString();
        assertEquals("UnsatisfiedLinkError: no \"library\"\nhere", outcomes.get(0).verdict.found);
        assertTrue(line, line.startsWith("FAIL {") && !line.contains("\n"));
        JSONObject report = new JSONObject(line.substring(5));
        assertFalse(report.getBoolean("passed"));
        assertEquals(outcomes.get(0).verdict.found, report.getString("found"));
    }
}
