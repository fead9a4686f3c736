package qndeploy;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.junit.Test;

/** Tables that stay tables: with our library of operators and without it a model.onnx gives the same bytes. */
public class TableLibraryTest {
    @Test
    public void theLibraryIsLoaded() {
        assertTrue(TableLibrary.FILE, TableLibrary.IS_THERE);
    }

    @Test
    public void bothWaysGiveTheSameBytes() throws Exception {
        int compared = 0;
        for (QnBuild model : Fixtures.models()) {
            if (model.programs.contains("model.onnx")) {
                List<byte[]> kept = outputs(model, true);
                List<byte[]> expanded = outputs(model, false);
                assertEquals(model.name, expanded.size(), kept.size());
                for (int i = 0; i < kept.size(); i++) {
                    assertArrayEquals(model.name, expanded.get(i), kept.get(i));
                }
                compared++;
            }
        }
        assertTrue(compared > 0);
    }

    private static List<byte[]> outputs(QnBuild model, boolean keepsTables) throws Exception {
        List<byte[]> outputs = new ArrayList<>();
        try (OrtProgram program = new OrtProgram(model, "model.onnx", keepsTables)) {
            for (TensorData output : program.run(model.golden("input"))) {
                ByteBuffer data = output.direct();
                byte[] bytes = new byte[data.remaining()];
                data.get(bytes);
                outputs.add(bytes);
            }
        }
        return outputs;
    }
}
