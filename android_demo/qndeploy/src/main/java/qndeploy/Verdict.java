package qndeploy;

import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;

/** What was found, the limit, and whether it passed: one check of the parity ladder, by the rules of qn_deploy/verification/judge.py. */
public final class Verdict {
    /** How closely outputs have to agree. */
    public enum Rule {
        IDENTICAL, WITHIN_A_STEP, SIMILAR, CLOSE
    }

    private static final double MIN_SQNR_DB = 40;
    private static final double BELOW_LOSS_DB = 20; // an error that is a tenth of quantization's own is no fault
    private static final double LEAST_SQNR_DB = 20; // whatever the loss
    private static final double MIN_SQNR_FLOAT_DB = 60; // where nothing is rounded
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
        List<TensorData> floats = build.golden("float");
        double[] losses = new double[reference.size()];
        for (int i = 0; i < losses.length; i++) {
            boolean comparable = i < floats.size() && reference.get(i).toString().equals(floats.get(i).toString());
            losses[i] = comparable ? sqnr(reference.get(i), floats.get(i)) : Double.POSITIVE_INFINITY;
        }
        return ofOutputs(build, file, outputs, reference, entry.isExact ? Rule.IDENTICAL : entry.isFloat ? Rule.CLOSE : Rule.SIMILAR, losses);
    }

    /** Rung 4: two runtimes with each other, where both are exact; dynamic activations are two programs by design. `file` is the first's. */
    public static Verdict ofTwins(QnBuild build, String file, List<TensorData> one, List<TensorData> other) {
        double[] none = new double[other.size()];
        Arrays.fill(none, Double.POSITIVE_INFINITY);
        return ofOutputs(build, file, one, other, Rule.WITHIN_A_STEP, none);
    }

    /** A run that ended in an error. */
    public static Verdict ofError(Throwable error) {
        String message = error.getMessage() == null ? error.getClass().getSimpleName() : error.getMessage();
        boolean explained = error instanceof BadFileException; // other messages need their type to make sense
        return new Verdict(false, explained ? message : error.getClass().getSimpleName() + ": " + message, "runs");
    }

    private static Verdict ofOutputs(
            QnBuild build, String file, List<TensorData> found, List<TensorData> expected, Rule rule, double[] losses) {
        if (!found.toString().equals(expected.toString())) { // types and shapes
            return new Verdict(false, found.toString(), expected.toString());
        }
        boolean empty = true;
        for (TensorData tensor : expected) {
            empty &= tensor.count() == 0;
        }
        if (empty) {
            return new Verdict(false, "no values: nothing was compared", "values");
        }
        Manifest manifest = build.manifest;
        List<Double> steps = manifest.files.get(file).steps;
        boolean passed = true;
        StringBuilder said = new StringBuilder();
        Set<String> limits = new LinkedHashSet<>();
        for (int i = 0; i < found.size(); i++) {
            Verdict verdict = ofTensors(found.get(i), expected.get(i), steps.get(i), rule, losses[i]);
            passed &= verdict.passed;
            said.append(i == 0 ? "" : "; ").append(verdict.found).append(found.size() > 1 ? " [" + manifest.outputs.get(i) + "]" : "");
            limits.add(verdict.limit);
        }
        return new Verdict(passed, said.toString(), String.join("; ", limits));
    }

    /**
     * Two tensors of one type and shape; `step` is the quantization step, null for a float output; `loss` is the SQNR in dB that quantization
     * leaves this output. NaN agrees with NaN alone; integers and truth values have to be equal, whatever the rule.
     */
    static Verdict ofTensors(TensorData found, TensorData expected, Double step, Rule rule, double loss) {
        int count = found.count();
        boolean isFloat = found.dtype == TensorData.DType.FLOAT || found.dtype == TensorData.DType.DOUBLE;
        boolean identical = true; // but for the sign of zero, which no runtime promises to keep
        double worst = 0;
        int differing = 0;
        for (int i = 0; i < count; i++) {
            double a = found.value(i);
            double b = expected.value(i);
            boolean same = a == b || Double.isNaN(a) && Double.isNaN(b);
            double error = same ? 0 : Math.abs(a - b); // infinity - infinity is NaN
            identical &= found.dtype == TensorData.DType.INT64 ? found.data().getLong(8 * i) == expected.data().getLong(8 * i) : same;
            worst = Math.max(worst, error);
            differing += error <= (step == null ? 0 : step / 2) ? 0 : 1;
        }
        double sqnr = sqnr(found, expected);
        double steps = step == null ? 0 : worst / step;
        double percent = 100.0 * differing / count;
        String said = "SQNR " + number("%.1f", sqnr) + " dB";
        if (identical) {
            said = "bit-identical";
        } else if (!isFloat) {
            said = String.format(Locale.ROOT, "%.2f%% of values differ", percent);
        } else if (step == null) {
            said += String.format(Locale.ROOT, ", top-1 %.1f%%", 100 * sameTop1(found, expected));
        } else {
            String number = number("%.0f", steps);
            said = number + (number.equals("1") ? " step" : " steps") + String.format(Locale.ROOT, ", %.2f%% of values, ", percent) + said;
        }
        Rule applied = !isFloat ? Rule.IDENTICAL : rule == Rule.WITHIN_A_STEP && step == null ? Rule.SIMILAR : rule;
        switch (applied) {
            case IDENTICAL: return new Verdict(identical, said, "bit-identical");
            case WITHIN_A_STEP: return new Verdict(steps <= 1 + ROUNDING, said, "<= 1 step");
            case CLOSE: return new Verdict(sqnr >= MIN_SQNR_FLOAT_DB, said, "SQNR >= 60 dB");
            default:
                double limit = Math.max(LEAST_SQNR_DB, Math.min(MIN_SQNR_DB, loss + BELOW_LOSS_DB));
                String tenth = "SQNR >= " + number("%.1f", limit) + " dB: a tenth of the error of quantization";
                return new Verdict(sqnr >= limit, said, limit == MIN_SQNR_DB ? "SQNR >= 40 dB" : tenth);
        }
    }

    /** Signal to noise in dB; infinite without noise, and minus infinity without a finite ratio. */
    private static double sqnr(TensorData found, TensorData expected) {
        double noise = 0;
        double signal = 0;
        for (int i = 0; i < expected.count(); i++) {
            double a = found.value(i);
            double b = expected.value(i);
            boolean same = a == b || Double.isNaN(a) && Double.isNaN(b);
            noise += same ? 0 : (a - b) * (a - b);
            signal += same && !Double.isFinite(b) ? 0 : b * b; // what is infinite or NaN in both is no signal
        }
        boolean finite = signal > 0 && Double.isFinite(signal) && Double.isFinite(noise);
        return noise == 0 ? Double.POSITIVE_INFINITY : finite ? 10 * Math.log10(signal / noise) : Double.NEGATIVE_INFINITY;
    }

    /** Share of rows that have a largest entry along the last dimension in common; of equal ones any may be it. */
    private static double sameTop1(TensorData found, TensorData expected) {
        int count = found.count();
        int width = found.shape.length == 0 ? 1 : (int) found.shape[found.shape.length - 1];
        int agreeing = 0;
        for (int row = 0; row < count; row += width) {
            double best = Double.NEGATIVE_INFINITY;
            double wanted = Double.NEGATIVE_INFINITY;
            for (int i = row; i < row + width; i++) {
                boolean unknown = Double.isNaN(found.value(i)) && Double.isNaN(expected.value(i));
                best = Math.max(best, unknown ? best : found.value(i)); // NaN stays, and equals nothing
                wanted = Math.max(wanted, unknown ? wanted : expected.value(i));
            }
            for (int i = row; i < row + width; i++) {
                boolean unknown = Double.isNaN(found.value(i)) && Double.isNaN(expected.value(i));
                double a = unknown ? Double.NEGATIVE_INFINITY : found.value(i);
                double b = unknown ? Double.NEGATIVE_INFINITY : expected.value(i);
                if (a == best && b == wanted) {
                    agreeing++;
                    break;
                }
            }
        }
        return count == 0 ? 1 : (double) agreeing * width / count;
    }

    /** As Python writes it. */
    private static String number(String format, double value) {
        return Double.isNaN(value) ? "nan" : Double.isInfinite(value) ? value > 0 ? "inf" : "-inf" : String.format(Locale.ROOT, format, value);
    }
}
