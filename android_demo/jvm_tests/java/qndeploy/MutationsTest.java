package qndeploy;

import static org.junit.Assert.assertTrue;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.zip.CRC32;
import org.json.JSONException;
import org.junit.Test;

/** Files that are damaged at random, or forged with checksums made right: read, or refused by one of two exceptions. */
public class MutationsTest {
    private static final int RUNS = Integer.getInteger("qn.runs", 2000);
    private static final long LIMIT_NS = 10_000_000_000L;
    private static final int HEADER = 64; // of a .qnz; then pieces: CRC-32, kind, size, rebuilt size, data
    private static final int PIECE = 16;
    private static final int[] LENGTHS = {1, 2, 4, 8, 64, 1024};
    private static final long[] NUMBERS = {0, 1L << 31, 1L << 40, Long.MIN_VALUE, -1, Integer.MAX_VALUE};

    @Test
    public void everyFileIsReadOrRefused() throws Exception {
        List<File> files = new ArrayList<>();
        for (File file : Fixtures.files("good")) {
            if (!file.getName().endsWith(".dense")) {
                files.add(file);
            }
        }
        for (File model : Fixtures.files("models")) {
            for (File file : model.isDirectory() ? model.listFiles() : new File[0]) {
                if (file.getName().endsWith(".json") || file.getName().endsWith(".safetensors")) {
                    files.add(file);
                }
            }
        }
        files.addAll(Arrays.asList(Fixtures.files("shell")));
        assertTrue(files.size() + " files", files.size() >= 4);
        Random draw = new Random(16);
        File scratch = Fixtures.scratch();
        int refused = 0;
        for (int run = 0; run < RUNS; run++) {
            File file = files.get(run % files.size());
            byte[] data = mutated(Fixtures.read(file), draw);
            if (file.getName().endsWith(".qnz") && draw.nextBoolean()) {
                seal(data);
            }
            long start = System.nanoTime();
            try {
                read(file.getName(), data, scratch);
            } catch (BadFileException | JSONException expected) { // QnBuild gives the second as the first
                refused++;
            } catch (Throwable found) {
                throw new AssertionError("run " + run + ", " + file, found);
            }
            assertTrue("run " + run + ", " + file + " takes too long", System.nanoTime() - start < LIMIT_NS);
        }
        System.out.println("mutations: " + RUNS + " runs over " + files.size() + " files, " + refused + " refused");
        assertTrue(refused > RUNS / 10);
    }

    private static void read(String name, byte[] data, File scratch) throws IOException, JSONException {
        ByteBuffer bytes = ByteBuffer.wrap(data);
        if (name.endsWith(".blob")) {
            new TableBlob(data).dense();
        } else if (name.endsWith(".qnz")) {
            StockForm.rebuild(bytes, new File(scratch, "model.pte"));
        } else if (name.equals(ShellForm.SIDECAR)) {
            ShellForm.constants(bytes);
        } else if (name.endsWith(".safetensors")) {
            for (TensorData tensor : new Safetensors(bytes).tensors.values()) {
                tensor.direct();
            }
        } else {
            new Manifest(bytes);
        }
    }

    private static byte[] mutated(byte[] data, Random draw) {
        byte[] changed = data.clone();
        int at = draw.nextInt(data.length);
        int length = Math.min(LENGTHS[draw.nextInt(LENGTHS.length)], data.length - at);
        switch (draw.nextInt(5)) {
            case 0:
                for (int i = draw.nextInt(8); i >= 0; i--) {
                    changed[draw.nextInt(data.length)] ^= (byte) (1 << draw.nextInt(8));
                }
                return changed;
            case 1:
                return Arrays.copyOf(changed, at);
            case 2:
                Arrays.fill(changed, at, at + length, (byte) (draw.nextBoolean() ? 0xff : 0));
                return changed;
            case 3:
                System.arraycopy(data, draw.nextInt(data.length - length + 1), changed, at, length);
                return changed;
            default:
                ByteBuffer number = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(0, NUMBERS[draw.nextInt(NUMBERS.length)]);
                System.arraycopy(number.array(), 0, changed, at, Math.min(8, data.length - at));
                return changed;
        }
    }

    /** Makes the checksums of all whole pieces right, and the size that the header states. */
    private static void seal(byte[] container) {
        ByteBuffer bytes = ByteBuffer.wrap(container).order(ByteOrder.LITTLE_ENDIAN);
        long size = 0;
        for (int at = HEADER; at + PIECE <= container.length;) {
            int stored = bytes.getInt(at + 8);
            if (stored < 1 || stored > container.length - at - PIECE) {
                break;
            }
            CRC32 crc = new CRC32();
            crc.update(container, at + 4, PIECE - 4 + stored);
            bytes.putInt(at, (int) crc.getValue());
            size += bytes.getInt(at + 12);
            at += PIECE + stored;
        }
        if (container.length >= HEADER) {
            bytes.putLong(24, size);
        }
    }
}
