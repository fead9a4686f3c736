package qndeploy.core;

import java.util.Locale;

/** How well `found` meets `expected`, by the same rules as qn_deploy/verify/numerics.py. NaN agrees with nothing. */
public final class Agreement {
    /** The same bits, but for the sign of zero, which no runtime promises to keep. */
    public final boolean identical;
    /** The largest difference in quantization steps of the output; null for a float output. */
    public final Double steps;
    /** Share of values that differ by more than half a step (float output: at all). */
    public final double differing;
    /** 10 log10(|expected|^2 / |found - expected|^2); infinite without noise, minus infinity without a finite ratio. */
    public final double sqnrDb;
    /** Share of rows without NaN that have the same largest entry along the last dimension. */
    public final double top1;

    /** Compares two tensors of one type and shape; `step` is the output's quantization step or null. */
    public Agreement(TensorData found, TensorData expected, Double step) {
        double worst = 0;
        double noise = 0;
        double signal = 0;
        int apart = 0;
        boolean same = true;
        int count = found.count();
        for (int i = 0; i < count; i++) {
            double a = found.value(i);
            double b = expected.value(i);
            double error = a == b ? 0 : Math.abs(a - b); // infinity - infinity is NaN
            boolean equal = found.dtype == TensorData.DType.INT64 ? found.data().getLong(8 * i) == expected.data().getLong(8 * i) : a == b;
            same &= equal;
            worst = Math.max(worst, error);
            noise += error * error;
            signal += b * b;
            apart += error <= (step == null ? 0 : step / 2) ? 0 : 1;
        }
        identical = same;
        steps = step == null ? null : Double.valueOf(worst / step);
        differing = count == 0 ? 0 : (double) apart / count;
        boolean finite = signal > 0 && Double.isFinite(signal) && Double.isFinite(noise);
        double ratio = finite ? 10 * Math.log10(signal / noise) : Double.NEGATIVE_INFINITY;
        sqnrDb = noise == 0 ? Double.POSITIVE_INFINITY : ratio;
        int width = found.shape.length == 0 ? 1 : (int) found.shape[found.shape.length - 1];
        int agreeing = 0;
        for (int row = 0; row < count; row += width) {
            int best = found.argmax(row, width);
            agreeing += best >= 0 && best == expected.argmax(row, width) ? 1 : 0;
        }
        top1 = count == 0 ? 1 : (double) agreeing * width / count;
    }

    @Override
    public String toString() {
        if (identical) {
            return "bit-identical";
        }
        String sqnr = "SQNR " + number("%.1f", sqnrDb) + " dB";
        if (steps == null) {
            return sqnr + String.format(Locale.ROOT, ", top-1 %.1f%%", 100 * top1);
        }
        String number = number("%.0f", steps);
        return number + (number.equals("1") ? " step" : " steps") + String.format(Locale.ROOT, ", %.2f%% of values, ", 100 * differing) + sqnr;
    }

    /** As Python writes it. */
    private static String number(String format, double value) {
        return Double.isNaN(value) ? "nan" : Double.isInfinite(value) ? value > 0 ? "inf" : "-inf" : String.format(Locale.ROOT, format, value);
    }
}
