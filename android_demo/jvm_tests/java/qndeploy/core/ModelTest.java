package qndeploy.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.IOException;
import java.util.Collections;
import java.util.List;
import org.junit.Test;

public class ModelTest {
    /** The fixtures with one bit of one file flipped, whatever the length of it. */
    private static Model.Assets damaged(String file) {
        return path -> {
            byte[] data = Fixtures.read(path);
            if (path.endsWith("/" + file)) {
                data[data.length / 2] ^= 1;
            }
            return data;
        };
    }

    @Test
    public void aDamagedManifestOrReferenceIsRefused() throws IOException {
        for (String file : new String[] {"manifest.json", "golden.safetensors"}) {
            try {
                Model.all(damaged(file), Fixtures.scratch());
                fail(file);
            } catch (BadFileException expected) {
                assertTrue(expected.getMessage(), expected.getMessage().contains(file + " is not the file that was exported"));
            }
        }
    }

    /** No engine ever sees the bytes of a damaged program. */
    @Test
    public void aDamagedProgramIsRefusedBeforeItIsLoaded() throws IOException {
        for (Model whole : Fixtures.models()) {
            for (String file : whole.files) {
                for (Model model : Model.all(damaged(file), Fixtures.scratch())) {
                    if (model.name.equals(whole.name)) {
                        List<Outcome> outcomes = new Runner(Collections.<Engine>singletonList(new Untouched(file)), 1).run(model);
                        assertEquals(1, outcomes.size());
                        assertFalse(outcomes.get(0).verdict.passed);
                        assertTrue(outcomes.get(0).verdict.found.contains(file + " is not the file that was exported"));
                    }
                }
            }
        }
    }

    @Test
    public void aFileThatTheManifestDoesNotListIsRefused() throws IOException {
        try {
            Fixtures.models().get(0).read("../../expected.json");
            fail();
        } catch (BadFileException expected) {
            assertTrue(expected.getMessage().contains("not listed"));
        }
    }

    /** A missing runtime is a verdict, no crash; the report stays one line and valid JSON. */
    @Test
    public void aMissingRuntimeFails() throws IOException {
        Model model = Fixtures.models().get(0);
        Engine engine = new Untouched(model.files.get(0)) {
            @Override
            public Session load(Model from, String name) {
                throw new UnsatisfiedLinkError("no \"library\"\nhere");
            }
        };
        Outcome outcome = new Runner(Collections.singletonList(engine), 1).run(model).get(0);
        assertEquals("UnsatisfiedLinkError: no \"library\"\nhere", outcome.verdict.found);
        assertFalse(outcome.line().contains("\n"));
        assertTrue(outcome.line().startsWith("FAIL model="));
        assertEquals(false, Json.parse(outcome.json().getBytes("UTF-8")).get("passed"));
    }

    private static class Untouched implements Engine {
        private final String file;

        Untouched(String file) {
            this.file = file;
        }

        @Override
        public String runtime() {
            return "none";
        }

        @Override
        public boolean takes(String name) {
            return name.equals(file);
        }

        @Override
        public Session load(Model model, String name) throws IOException {
            model.read(name);
            throw new AssertionError("loaded " + name);
        }
    }
}
