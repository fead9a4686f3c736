package qndeploy;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONObject;
import org.junit.Test;

public class VerdictTest {
    /** Pairs of tensors with what qn_deploy.verify says of them, by each rule. */
    @Test
    public void agreesWithPython() throws Exception {
        Map<String, TensorData> tensors = new Safetensors(Fixtures.map("agreement.safetensors")).tensors;
        JSONArray cases = Fixtures.json("agreement.json").getJSONArray("cases");
        assertTrue(cases.length() > 60);
        for (int i = 0; i < cases.length(); i++) {
            JSONObject expected = cases.getJSONObject(i);
            String at = "/" + expected.getInt("pair");
            Double step = expected.isNull("step") ? null : (Double) expected.getDouble("step");
            Verdict.Rule rule = Verdict.Rule.valueOf(expected.getString("rule"));
            Verdict verdict = Verdict.ofTensors(tensors.get("found" + at), tensors.get("expected" + at), step, rule, expected.getDouble("loss"));
            assertEquals("case " + i, expected.getString("found"), verdict.found);
            assertEquals("case " + i, expected.getString("limit"), verdict.limit);
            assertEquals("case " + i, expected.getBoolean("passed"), verdict.passed);
        }
    }

    private static QnBuild model(String name) throws Exception {
        for (QnBuild model : Fixtures.models()) {
            if (model.name.equals(name)) {
                return model;
            }
        }
        throw new AssertionError("no fixture " + name);
    }

    /** The tensor with something added to its first value. */
    private static List<TensorData> off(TensorData tensor, double by) throws BadFileException {
        ByteBuffer bytes = ByteBuffer.allocate(4 * tensor.count()).order(ByteOrder.LITTLE_ENDIAN);
        bytes.put(tensor.data());
        bytes.putFloat(0, (float) (tensor.value(0) + by));
        bytes.rewind();
        return Collections.singletonList(new TensorData(tensor.dtype, tensor.shape, bytes));
    }

    @Test
    public void anExactProgramHasToBeBitIdentical() throws Exception {
        QnBuild model = model("linear-static");
        TensorData reference = model.golden("reference/onnx").get(0);
        double step = model.manifest.files.get("model.onnx").steps.get(0);
        assertTrue(Verdict.ofRuntime(model, "model.onnx", off(reference, 0)).passed);
        Verdict verdict = Verdict.ofRuntime(model, "model.onnx", off(reference, step));
        assertEquals("bit-identical", verdict.limit);
        assertTrue(verdict.found, !verdict.passed && verdict.found.startsWith("1 step, "));
    }

    @Test
    public void runtimesMayDifferByAStep() throws Exception {
        QnBuild model = model("linear-static");
        TensorData reference = model.golden("reference/onnx").get(0);
        double step = model.manifest.files.get("model.onnx").steps.get(0);
        assertTrue(Verdict.ofTwins(model, "model.onnx", off(reference, step), off(reference, 0)).passed);
        assertEquals("<= 1 step", Verdict.ofTwins(model, "model.onnx", off(reference, step), off(reference, 0)).limit);
        assertTrue(!Verdict.ofTwins(model, "model.onnx", off(reference, 2 * step), off(reference, 0)).passed);
    }

    @Test
    public void aFloatProgramHasToBeClose() throws Exception {
        QnBuild model = model("MLP-dynamic");
        TensorData simulated = model.golden("simulated/onnx").get(0);
        assertTrue(Verdict.ofRuntime(model, "model.onnx", off(simulated, 1e-6)).passed);
        Verdict verdict = Verdict.ofRuntime(model, "model.onnx", off(simulated, 10));
        assertTrue(verdict.limit, verdict.limit.startsWith("SQNR >= ")); // 40 dB, or less where quantization itself costs much
        assertTrue(verdict.found, !verdict.passed);
    }

    @Test
    public void anotherShapeIsNoAgreement() throws Exception {
        QnBuild model = model("linear-static");
        TensorData one = model.golden("reference/onnx").get(0).first();
        Verdict verdict = Verdict.ofRuntime(model, "model.onnx", Collections.singletonList(one));
        assertTrue(!verdict.passed);
        assertEquals("[F32 [1, 32]]", verdict.found);
    }
}
