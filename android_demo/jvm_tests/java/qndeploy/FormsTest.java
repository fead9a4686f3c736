package qndeploy;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Map;
import org.junit.Test;

/** Table blobs, the stock form and the shell form: the same bytes as Python's, and what Python refuses is refused. */
public class FormsTest {
    private static final int SMALL = 2000;

    /** Decodes a file: a blob to its dense constant, a .qnz to its program. */
    private static byte[] decode(File file, byte[] data) throws IOException {
        if (file.getName().endsWith(".blob")) {
            return new TableBlob(data).dense();
        }
        File target = new File(Fixtures.scratch(), "model.pte");
        StockForm.rebuild(ByteBuffer.wrap(data), target);
        return Fixtures.read(target);
    }

    @Test
    public void decodesToTheBytesOfPython() throws IOException {
        int blobs = 0;
        int programs = 0;
        for (File file : Fixtures.files("good")) {
            if (!file.getName().endsWith(".dense")) {
                assertArrayEquals(file.getName(), Fixtures.read(new File(file.getPath() + ".dense")), decode(file, Fixtures.read(file)));
                blobs += file.getName().endsWith(".blob") ? 1 : 0;
                programs += file.getName().endsWith(".qnz") ? 1 : 0;
            }
        }
        assertTrue(blobs + " blobs, " + programs + " programs", blobs >= 10 && programs >= 1);
    }

    @Test
    public void refusesWhatPythonRefuses() throws IOException {
        assertTrue(Fixtures.files("bad").length > 50);
        for (File file : Fixtures.files("bad")) {
            refused(file.getName(), file, Fixtures.read(file));
        }
    }

    @Test
    public void aProgramThatIsCutOffAnywhereLeavesNoFile() throws IOException {
        for (File file : Fixtures.files("good")) {
            byte[] data = Fixtures.read(file);
            for (int length = 0; file.getName().endsWith(".qnz") && length < data.length; length += 1 + data.length / 50) {
                File target = new File(Fixtures.scratch(), "model.pte");
                try {
                    StockForm.rebuild(ByteBuffer.wrap(data, 0, length), target);
                    fail(file + " cut to " + length);
                } catch (BadFileException expected) {
                    assertEquals(0, target.getParentFile().list().length);
                }
            }
        }
    }

    /** Flips one bit in every byte of small blobs: refused, or other values, and never another exception. */
    @Test
    public void noDamageOfABlobGoesWrong() throws IOException {
        for (File file : Fixtures.files("good")) {
            byte[] data = Fixtures.read(file);
            for (int at = 0; file.getName().endsWith(".blob") && data.length < SMALL && at < data.length; at++) {
                byte[] damaged = data.clone();
                damaged[at] ^= (byte) (1 << at % 8);
                try {
                    decode(file, damaged);
                    assertFalse(file + ", byte " + at, at < 16);
                } catch (BadFileException refused) {
                    assertTrue(refused.getMessage().startsWith("table blob: "));
                }
            }
        }
    }

    @Test
    public void aSidecarHoldsTheConstantsOfPython() throws Exception {
        Map<String, TensorData> expected = new Safetensors(Fixtures.map("shell/dense.safetensors")).tensors;
        Map<String, TensorData> found = ShellForm.constants(Fixtures.map("shell/" + ShellForm.SIDECAR));
        assertEquals(expected.keySet(), found.keySet());
        for (String name : expected.keySet()) {
            assertEquals(name, expected.get(name).toString(), found.get(name).toString());
            assertEquals(name, expected.get(name).data(), found.get(name).data());
        }
    }

    private static void refused(String what, File file, byte[] data) throws IOException {
        try {
            decode(file, data);
        } catch (BadFileException expected) {
            return;
        }
        fail(what + " was not refused");
    }
}
