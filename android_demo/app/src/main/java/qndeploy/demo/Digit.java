package qndeploy.demo;

import java.util.Arrays;
import java.util.List;
import qndeploy.BadFileException;
import qndeploy.QnBuild;
import qndeploy.TensorData;

/**
 * A drawn digit as the demo model reads it.
 *
 * The model learned from bitmaps of 32x32 pixels, counted in blocks of 4x4 (scikit-learn's digits, after NIST's programs). There a digit is
 * 32 pixels high and about 20 wide whatever its proportions were, stands upright in that its leftmost ink at the top is above its leftmost
 * ink at the bottom, and has the same amount of ink, by a thicker or thinner pen. A drawing gets the same treatment.
 */
final class Digit {
    private static final int SIDE = 32;
    private static final int BLOCK = 4;
    private static final int WIDTH = SIDE / BLOCK;
    private static final int DIGIT_WIDTH = 20;
    private static final double MAX_STRETCH = 2; // how many times more one direction may grow than the other: a 1 stays narrow
    private static final int INK = 320; // pixels; the data set's digits have 310 on average
    private static final double MIN_PEN = 1, MAX_PEN = 6; // radius in pixels
    private static final double MIN_SIZE = 0.1; // of the pad's side: less is a dot

    private Digit() {}

    /** True if a model reads such images: one float input [N, 1, 8, 8]. */
    static boolean suits(QnBuild build) throws BadFileException {
        return build.example().toString().equals("[F32 [1, 1, 8, 8]]");
    }

    /**
     * The model's input for straight lines {x0, y0, x1, y1}, in units of the pad's side; null if they can't be a digit: a dot, or so many of
     * them that they fill all of it.
     */
    static TensorData image(List<float[]> lines) throws BadFileException {
        double[][] points = new double[lines.size()][];
        for (int i = 0; i < points.length; i++) {
            float[] line = lines.get(i);
            points[i] = new double[] {line[0], line[1], line[2], line[3]};
        }
        if (points.length == 0 || Math.max(extent(points, 0)[1], extent(points, 1)[1]) < MIN_SIZE) {
            return null;
        }
        double pen = 2;
        double[] distances = null;
        for (int round = 0; round < 2; round++) { // the second with the pen that the first found
            fit(points, pen);
            raise(points, distances(points), pen);
            distances = distances(points);
            double[] sorted = distances.clone();
            Arrays.sort(sorted);
            pen = sorted[INK - 1];
            if (pen < MIN_PEN || pen > MAX_PEN) {
                return null;
            }
        }
        return counted(distances, pen);
    }

    /** Moves and stretches lines so that, drawn with this pen, they fill the height, and the width of a digit. */
    private static void fit(double[][] lines, double pen) {
        double[] x = extent(lines, 0);
        double[] y = extent(lines, 1);
        double across = (DIGIT_WIDTH - 2 * pen) / Math.max(1e-6, x[1]);
        double down = (SIDE - 2 * pen) / Math.max(1e-6, y[1]);
        across = Math.min(across, MAX_STRETCH * down);
        down = Math.min(down, MAX_STRETCH * across);
        for (double[] line : lines) {
            for (int i = 0; i < line.length; i++) {
                line[i] = SIDE / 2.0 + (i % 2 == 0 ? across * (line[i] - x[0]) : down * (line[i] - y[0]));
            }
        }
    }

    /** Shears lines until the leftmost ink of the top row is above that of the bottom row, and puts them into the middle again. */
    private static void raise(double[][] lines, double[] distances, double pen) {
        int[] first = new int[SIDE]; // leftmost ink of each row, SIDE if there is none
        Arrays.fill(first, SIDE);
        int top = SIDE;
        int bottom = 0;
        for (int i = distances.length - 1; i >= 0; i--) {
            if (distances[i] <= pen) {
                first[i / SIDE] = i % SIDE;
                top = i / SIDE;
                bottom = Math.max(bottom, top);
            }
        }
        double slant = bottom > top ? (first[bottom] - first[top]) / (double) (bottom - top) : 0;
        slant = Math.max(-1, Math.min(1, slant));
        for (double[] line : lines) {
            line[0] -= slant * (line[1] - SIDE / 2.0);
            line[2] -= slant * (line[3] - SIDE / 2.0);
        }
        double middle = extent(lines, 0)[0];
        for (double[] line : lines) {
            line[0] += SIDE / 2.0 - middle;
            line[2] += SIDE / 2.0 - middle;
        }
    }

    /** The middle and the length of what lines take, along x (0) or y (1). */
    private static double[] extent(double[][] lines, int axis) {
        double low = Double.MAX_VALUE;
        double high = -Double.MAX_VALUE;
        for (double[] line : lines) {
            low = Math.min(low, Math.min(line[axis], line[axis + 2]));
            high = Math.max(high, Math.max(line[axis], line[axis + 2]));
        }
        return new double[] {(low + high) / 2, high - low};
    }

    /** From the middle of each pixel to the nearest line. */
    private static double[] distances(double[][] lines) {
        double[] distances = new double[SIDE * SIDE];
        for (int i = 0; i < distances.length; i++) {
            double x = i % SIDE + 0.5;
            double y = i / SIDE + 0.5;
            double nearest = Double.MAX_VALUE;
            for (double[] line : lines) {
                double dx = line[2] - line[0];
                double dy = line[3] - line[1];
                double along = ((x - line[0]) * dx + (y - line[1]) * dy) / Math.max(1e-9, dx * dx + dy * dy); // 0 at the start, 1 at the end
                double clipped = Math.max(0, Math.min(1, along));
                nearest = Math.min(nearest, Math.hypot(x - line[0] - clipped * dx, y - line[1] - clipped * dy));
            }
            distances[i] = nearest;
        }
        return distances;
    }

    private static TensorData counted(double[] distances, double pen) throws BadFileException {
        float[] values = new float[WIDTH * WIDTH];
        Arrays.fill(values, -1);
        for (int i = 0; i < distances.length; i++) {
            values[i / SIDE / BLOCK * WIDTH + i % SIDE / BLOCK] += distances[i] <= pen ? 1 / 8f : 0; // as qn-deploy demo scales 0..16
        }
        return TensorData.of(values, 1, 1, WIDTH, WIDTH);
    }
}
