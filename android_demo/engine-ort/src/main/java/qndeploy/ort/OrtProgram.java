package qndeploy.ort;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxTensorLike;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import org.json.JSONException;
import qndeploy.core.BadFileException;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.ShellForm;
import qndeploy.core.TensorData;

/** A program on onnxruntime: model.onnx as it is, or the shell form with its constants decoded by the app. */
public final class OrtProgram implements Engine.Program {
    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final OrtSession session;
    private final Map<String, OnnxTensorLike> constants = new HashMap<>(); // onnxruntime reads them as long as the session lives

    public OrtProgram(Model model, String file) throws IOException, JSONException, OrtException {
        byte[] program = model.read(file);
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setIntraOpNumThreads(1); // small models: more threads cost more than they give
            options.addConfigEntry("session.x64quantprecision", "1"); // emulators on x86 without VNNI would saturate; ARM ignores it
            if (file.equals(ShellForm.SHELL)) {
                for (Map.Entry<String, TensorData> constant : ShellForm.constants(model.read(ShellForm.SIDECAR)).entrySet()) {
                    constants.put(constant.getKey(), tensor(constant.getValue()));
                }
                options.addExternalInitializers(constants);
            }
            session = environment.createSession(program, options);
        }
    }

    @Override
    public List<TensorData> run(List<TensorData> inputs) throws BadFileException, OrtException {
        Map<String, OnnxTensorLike> feeds = new HashMap<>();
        Iterator<String> names = session.getInputNames().iterator();
        for (TensorData input : inputs) {
            feeds.put(names.next(), tensor(input));
        }
        List<TensorData> outputs = new ArrayList<>();
        try (OrtSession.Result result = session.run(feeds)) {
            for (Map.Entry<String, OnnxValue> entry : result) {
                OnnxTensor output = (OnnxTensor) entry.getValue();
                TensorData.DType dtype = TensorData.DType.valueOf(output.getInfo().type.name());
                outputs.add(new TensorData(dtype, output.getInfo().getShape(), output.getByteBuffer()));
            }
        } finally {
            close(feeds);
        }
        return outputs;
    }

    @Override
    public void close() throws OrtException {
        session.close();
        close(constants);
    }

    private OnnxTensor tensor(TensorData value) throws OrtException {
        return OnnxTensor.createTensor(environment, value.direct(), value.shape, OnnxJavaType.valueOf(value.dtype.name()));
    }

    private static void close(Map<String, OnnxTensorLike> tensors) {
        for (OnnxTensorLike tensor : tensors.values()) {
            tensor.close();
        }
    }
}
