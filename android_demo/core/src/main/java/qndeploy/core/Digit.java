package qndeploy.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;

/** A drawn digit as the demo model reads it: scikit-learn's digits are 32x32 bitmaps, counted in blocks of 4x4. */
public final class Digit {
    private static final int SIDE = 32;
    private static final int BLOCK = 4;
    private static final float PEN = 1.8f; // radius of the pen on the bitmap, about that of the data set
    private static final float STEP = 0.5f;

    private Digit() {}

    /** True if a model reads such images: one float input [N, 1, 8, 8]. */
    public static boolean suits(Model model) throws BadFileException {
        List<TensorData> inputs = model.golden("input");
        return inputs.size() == 1 && model.example().get(0).form().equals("F32 [1, 1, 8, 8]");
    }

    /** The input of the model: one stroke or more of points x0, y0, x1, y1, ... in any unit fill the bitmap's height or width. */
    public static TensorData image(List<float[]> strokes) throws BadFileException {
        float[] box = {Float.MAX_VALUE, Float.MAX_VALUE, -Float.MAX_VALUE, -Float.MAX_VALUE};
        for (float[] stroke : strokes) {
            for (int i = 0; i < stroke.length; i++) {
                box[i % 2] = Math.min(box[i % 2], stroke[i]);
                box[2 + i % 2] = Math.max(box[2 + i % 2], stroke[i]);
            }
        }
        float size = Math.max(1, Math.max(box[2] - box[0], box[3] - box[1]));
        float scale = (SIDE - 2 * PEN) / size;
        float left = (SIDE - scale * (box[0] + box[2])) / 2;
        float top = (SIDE - scale * (box[1] + box[3])) / 2;
        boolean[][] bitmap = new boolean[SIDE][SIDE];
        for (float[] stroke : strokes) {
            for (int i = 0; i + 1 < stroke.length; i += 2) {
                int next = i + 3 < stroke.length ? i + 2 : i;
                float dx = scale * (stroke[next] - stroke[i]);
                float dy = scale * (stroke[next + 1] - stroke[i + 1]);
                int steps = 1 + (int) (Math.hypot(dx, dy) / STEP);
                for (int s = 0; s <= steps; s++) {
                    dot(bitmap, left + scale * stroke[i] + dx * s / steps, top + scale * stroke[i + 1] + dy * s / steps);
                }
            }
        }
        return blocks(bitmap);
    }

    /** Index of the largest of a model's outputs. */
    public static int answer(List<TensorData> outputs) {
        return Agreement.argmax(outputs.get(0), 0, outputs.get(0).count());
    }

    private static void dot(boolean[][] bitmap, float x, float y) {
        for (int row = 0; row < SIDE; row++) {
            for (int column = 0; column < SIDE; column++) {
                bitmap[row][column] |= Math.hypot(column + 0.5 - x, row + 0.5 - y) <= PEN;
            }
        }
    }

    private static TensorData blocks(boolean[][] bitmap) throws BadFileException {
        int width = SIDE / BLOCK;
        float[] counts = new float[width * width];
        for (int row = 0; row < SIDE; row++) {
            for (int column = 0; column < SIDE; column++) {
                counts[row / BLOCK * width + column / BLOCK] += bitmap[row][column] ? 1 : 0;
            }
        }
        ByteBuffer values = ByteBuffer.allocate(4 * counts.length).order(ByteOrder.LITTLE_ENDIAN);
        for (float count : counts) {
            values.putFloat(count / 8 - 1); // as qn-deploy demo scales 0..16
        }
        values.flip();
        return new TensorData(TensorData.DType.FLOAT, new long[] {1, 1, width, width}, values);
    }
}
