package qndeploy.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.List;

/** A drawn digit as the demo model reads it: scikit-learn's digits are 32x32 bitmaps, counted in blocks of 4x4. */
public final class Digit {
    private static final int SIDE = 32;
    private static final int BLOCK = 4;
    private static final int WIDTH = SIDE / BLOCK;
    private static final float PEN = 1.8f; // radius of the pen on the bitmap, about that of the data set

    private Digit() {}

    /** True if a model reads such images: one float input [N, 1, 8, 8]. */
    public static boolean suits(Model model) throws BadFileException {
        return model.example().toString().equals("[F32 [1, 1, 8, 8]]");
    }

    /** The input of the model: straight lines {x0, y0, x1, y1}, in any unit, fill the bitmap's height or width. */
    public static TensorData image(List<float[]> lines) throws BadFileException {
        float[] box = {Float.MAX_VALUE, Float.MAX_VALUE, -Float.MAX_VALUE, -Float.MAX_VALUE};
        for (float[] line : lines) {
            for (int i = 0; i < line.length; i++) {
                box[i % 2] = Math.min(box[i % 2], line[i]);
                box[2 + i % 2] = Math.max(box[2 + i % 2], line[i]);
            }
        }
        float scale = (SIDE - 2 * PEN) / Math.max(1, Math.max(box[2] - box[0], box[3] - box[1]));
        float left = (SIDE - scale * (box[0] + box[2])) / 2;
        float top = (SIDE - scale * (box[1] + box[3])) / 2;
        int[] counts = new int[WIDTH * WIDTH];
        for (int row = 0; row < SIDE; row++) {
            for (int column = 0; column < SIDE; column++) {
                double x = (column + 0.5 - left) / scale;
                double y = (row + 0.5 - top) / scale;
                counts[row / BLOCK * WIDTH + column / BLOCK] += isInked(lines, x, y, PEN / scale) ? 1 : 0;
            }
        }
        ByteBuffer values = ByteBuffer.allocate(4 * counts.length).order(ByteOrder.LITTLE_ENDIAN);
        for (int i = 0; i < counts.length; i++) {
            values.putFloat(4 * i, counts[i] / 8f - 1); // as qn-deploy demo scales 0..16
        }
        return new TensorData(TensorData.DType.FLOAT, new long[] {1, 1, WIDTH, WIDTH}, values);
    }

    private static boolean isInked(List<float[]> lines, double x, double y, double radius) {
        for (float[] line : lines) {
            double dx = line[2] - line[0];
            double dy = line[3] - line[1];
            double along = ((x - line[0]) * dx + (y - line[1]) * dy) / Math.max(1e-9, dx * dx + dy * dy); // 0 at the start, 1 at the end
            double nearest = Math.max(0, Math.min(1, along));
            if (Math.hypot(x - line[0] - nearest * dx, y - line[1] - nearest * dy) <= radius) {
                return true;
            }
        }
        return false;
    }
}
