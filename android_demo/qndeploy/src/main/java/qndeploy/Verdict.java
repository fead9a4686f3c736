package qndeploy;

import java.util.List;
import java.util.Locale;

/** What was found, the limit, and whether it passed: one check of the parity ladder, by the rules of qn_deploy/verification/judge.py. */
public final class Verdict {
    /** How closely outputs have to agree. */
    public enum Rule {
        IDENTICAL("bit-identical"), WITHIN_A_STEP("<= 1 step"), SIMILAR("SQNR >= 40 dB");

        private final String limit;

        Rule(String limit) {
            this.limit = limit;
        }
    }

    private static final double MIN_SQNR_DB = 40;
    private static final double ROUNDING = 1e-3; // of a step: outputs are step * integer in float32

    public final boolean passed;
    public final String found;
    public final String limit;

    private Verdict(boolean passed, String found, String limit) {
        this.passed = passed;
        this.found = found;
        this.limit = limit;
    }

    /** Rung 3: a runtime's outputs against the integer reference, or against the simulated program if activations are not static. */
    public static Verdict ofRuntime(QnBuild build, String file, List<TensorData> outputs) throws BadFileException {
        Manifest.Entry entry = build.manifest.files.get(file);
        List<TensorData> reference = build.golden((entry.isStatic ? "reference/" : "simulated/") + entry.exporter);
        return ofOutputs(build, file, outputs, reference, entry.isExact ? Rule.IDENTICAL : Rule.SIMILAR);
    }

    /** Rung 4: two runtimes with each other, for static activations; dynamic ones are two programs by design. `file` is that of the first. */
    public static Verdict ofTwins(QnBuild build, String file, List<TensorData> one, List<TensorData> other) {
        return ofOutputs(build, file, one, other, Rule.WITHIN_A_STEP);
    }

    /** A run that ended in an error. */
    public static Verdict ofError(Throwable error) {
        String message = error.getMessage() == null ? error.getClass().getSimpleName() : error.getMessage();
        boolean explained = error instanceof BadFileException; // other messages need their type to make sense
        return new Verdict(false, explained ? message : error.getClass().getSimpleName() + ": " + message, "runs");
    }

    private static Verdict ofOutputs(QnBuild build, String file, List<TensorData> found, List<TensorData> expected, Rule rule) {
        if (!found.toString().equals(expected.toString())) { // types and shapes
            return new Verdict(false, found.toString(), expected.toString());
        }
        Manifest manifest = build.manifest;
        List<Double> steps = manifest.files.get(file).steps;
        boolean passed = true;
        StringBuilder said = new StringBuilder();
        String limit = "";
        for (int i = 0; i < found.size(); i++) {
            Verdict verdict = ofTensors(found.get(i), expected.get(i), steps.get(i), rule);
            passed &= verdict.passed;
            said.append(i == 0 ? "" : "; ").append(verdict.found).append(found.size() > 1 ? " [" + manifest.outputs.get(i) + "]" : "");
            limit = verdict.limit;
        }
        return new Verdict(passed, said.toString(), limit);
    }

    /** Two tensors of one type and shape; `step` is the quantization step, null for a float output. NaN agrees with nothing. */
    static Verdict ofTensors(TensorData found, TensorData expected, Double step, Rule rule) {
        int count = found.count();
        boolean identical = true; // but for the sign of zero, which no runtime promises to keep
        double worst = 0;
        double noise = 0;
        double signal = 0;
        int differing = 0;
        for (int i = 0; i < count; i++) {
            double a = found.value(i);
            double b = expected.value(i);
            double error = a == b ? 0 : Math.abs(a - b); // infinity - infinity is NaN
            identical &= found.dtype == TensorData.DType.INT64 ? found.data().getLong(8 * i) == expected.data().getLong(8 * i) : a == b;
            worst = Math.max(worst, error);
            noise += error * error;
            signal += b * b;
            differing += error <= (step == null ? 0 : step / 2) ? 0 : 1;
        }
        boolean finite = signal > 0 && Double.isFinite(signal) && Double.isFinite(noise);
        double sqnr = noise == 0 ? Double.POSITIVE_INFINITY : finite ? 10 * Math.log10(signal / noise) : Double.NEGATIVE_INFINITY;
        double top1 = sameTop1(found, expected);
        double steps = step == null ? 0 : worst / step;
        String said = "SQNR " + number("%.1f", sqnr) + " dB";
        if (identical) {
            said = "bit-identical";
        } else if (step == null) {
            said += String.format(Locale.ROOT, ", top-1 %.1f%%", 100 * top1);
        } else {
            String number = number("%.0f", steps);
            double percent = 100.0 * differing / count;
            said = number + (number.equals("1") ? " step" : " steps") + String.format(Locale.ROOT, ", %.2f%% of values, ", percent) + said;
        }
        Rule applied = rule == Rule.WITHIN_A_STEP && step == null ? Rule.SIMILAR : rule;
        boolean similar = applied == Rule.SIMILAR ? sqnr >= MIN_SQNR_DB : steps <= 1 + ROUNDING;
        return new Verdict(applied == Rule.IDENTICAL ? identical : similar, said, applied.limit);
    }

    /** Share of rows without NaN that have the same largest entry along the last dimension. */
    private static double sameTop1(TensorData found, TensorData expected) {
        int count = found.count();
        int width = found.shape.length == 0 ? 1 : (int) found.shape[found.shape.length - 1];
        int agreeing = 0;
        for (int row = 0; row < count; row += width) {
            int best = found.argmax(row, width);
            agreeing += best >= 0 && best == expected.argmax(row, width) ? 1 : 0;
        }
        return count == 0 ? 1 : (double) agreeing * width / count;
    }

    /** As Python writes it. */
    private static String number(String format, double value) {
        return Double.isNaN(value) ? "nan" : Double.isInfinite(value) ? value > 0 ? "inf" : "-inf" : String.format(Locale.ROOT, format, value);
    }
}
