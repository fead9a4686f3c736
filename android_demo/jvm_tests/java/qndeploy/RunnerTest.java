package qndeploy;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.List;
import org.junit.Test;

public class RunnerTest {
    /** A runtime whose outputs are the reference's. */
    private static Engine.Program recorded(QnBuild model, String file) {
        return new Engine.Program() {
            @Override
            public List<TensorData> run(List<TensorData> inputs) throws BadFileException {
                Manifest.Entry entry = model.manifest.files.get(file);
                return model.golden((entry.isStatic ? "reference/" : "simulated/") + entry.exporter);
            }

            @Override
            public void close() {}
        };
    }

    /** Only programs whose operators all have an exact rule are compared with each other; dynamic activations make two of one model. */
    @Test
    public void runtimesAreComparedWithEachOther() throws Exception {
        int compared = 0;
        for (QnBuild model : Fixtures.models()) {
            List<Outcome> outcomes = new Runner(RunnerTest::recorded, 1).run(model);
            int count = model.programs.size();
            Manifest.Entry first = model.manifest.files.get(model.programs.get(0));
            int twins = 0; // model.onnx with each form of ExecuTorch's program
            for (String file : model.programs) {
                Manifest.Entry other = model.manifest.files.get(file);
                twins += first.isExact && other.isExact && !first.runtime.equals(other.runtime) ? 1 : 0;
            }
            assertEquals(model.name, count + twins, outcomes.size());
            for (Outcome outcome : outcomes) {
                assertTrue(outcome.toString(), outcome.verdict.passed);
            }
            for (Outcome outcome : outcomes.subList(count, count + twins)) {
                compared++;
                assertEquals("onnxruntime to ExecuTorch XNNPACK", outcome.facts.get("runtime"));
                assertTrue(outcome.facts.get("file").toString().startsWith("model.onnx,model."));
            }
        }
        assertTrue(compared > 5);
    }

    @Test
    public void percentilesAreByNearestRank() {
        assertEquals(3, Runner.percentile(new long[] {5, 1, 4, 2, 3}, 50));
        assertEquals(5, Runner.percentile(new long[] {5, 1, 4, 2, 3}, 90));
        assertEquals(9, Runner.percentile(new long[] {10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 90));
        assertEquals(7, Runner.percentile(new long[] {7}, 50));
    }
}
