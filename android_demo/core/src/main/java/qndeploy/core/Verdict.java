package qndeploy.core;

import java.util.ArrayList;
import java.util.List;

/** One check of the parity ladder (qn_deploy/verify/ladder.py): what was found, the limit, and whether it passed. */
public final class Verdict {
    private static final double MAX_STEPS_TWINS = 1;
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
    public static Verdict ofRuntime(Model model, String exporter, List<TensorData> outputs) throws BadFileException {
        List<TensorData> reference = model.golden((model.manifest.isStatic ? "reference/" : "simulated/") + exporter);
        return judge(model.manifest, outputs, reference, model.manifest.isExact ? 0 : Double.POSITIVE_INFINITY);
    }

    /** Rung 4: two runtimes with each other, for static activations; dynamic ones are two programs by design. */
    public static Verdict ofTwins(Model model, List<TensorData> one, List<TensorData> other) {
        return judge(model.manifest, one, other, MAX_STEPS_TWINS);
    }

    /** A run that ended in an error. */
    public static Verdict ofError(Throwable error) {
        String message = error.getMessage() == null ? "" : ": " + error.getMessage();
        return new Verdict(false, error.getClass().getSimpleName() + message, "runs");
    }

    private static Verdict judge(Manifest manifest, List<TensorData> found, List<TensorData> expected, double maxSteps) {
        if (!forms(found).equals(forms(expected))) {
            return new Verdict(false, forms(found).toString(), forms(expected).toString());
        }
        boolean passed = true;
        List<String> said = new ArrayList<>();
        String limit = maxSteps == 0 ? "bit-identical" : "SQNR >= 40 dB, same top-1";
        for (int i = 0; i < found.size(); i++) {
            Agreement result = new Agreement(found.get(i), expected.get(i), manifest.steps.get(i));
            boolean counted = result.steps != null && !Double.isInfinite(maxSteps);
            boolean similar = counted ? result.steps <= maxSteps + ROUNDING : result.sqnrDb >= MIN_SQNR_DB && result.top1 == 1;
            passed &= maxSteps == 0 ? result.identical : similar;
            limit = counted && maxSteps > 0 ? "<= 1 step" : limit;
            said.add(result + (found.size() > 1 ? " [" + manifest.outputs.get(i) + "]" : ""));
        }
        return new Verdict(passed, String.join("; ", said), limit);
    }

    private static List<String> forms(List<TensorData> tensors) {
        List<String> forms = new ArrayList<>();
        for (TensorData tensor : tensors) {
            forms.add(tensor.form());
        }
        return forms;
    }
}
