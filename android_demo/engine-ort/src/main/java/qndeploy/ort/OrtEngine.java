package qndeploy.ort;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxTensorLike;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import qndeploy.core.BadFileException;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.ShellForm;
import qndeploy.core.TensorData;

/** onnxruntime: loads model.onnx as it is, and the shell form with its constants decoded by the app. */
public final class OrtEngine implements Engine {
    @Override
    public String runtime() {
        return "onnxruntime";
    }

    @Override
    public boolean takes(String file) {
        return file.endsWith(".onnx");
    }

    @Override
    public Session load(Model model, String file) throws Exception {
        byte[] program = model.read(file);
        Map<String, OnnxTensorLike> constants = new HashMap<>();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setIntraOpNumThreads(1); // small models: more threads cost more than they give
            options.addConfigEntry("session.x64quantprecision", "1"); // emulators on x86 without VNNI would saturate; ARM ignores it
            if (file.equals(ShellForm.SHELL)) {
                for (Map.Entry<String, TensorData> constant : ShellForm.constants(model.read(ShellForm.SIDECAR)).entrySet()) {
                    constants.put(constant.getKey(), tensor(constant.getValue()));
                }
                options.addExternalInitializers(constants);
            }
            return new OrtProgram(OrtEnvironment.getEnvironment().createSession(program, options), constants);
        }
    }

    private static OnnxTensor tensor(TensorData value) throws OrtException {
        OnnxJavaType type = OnnxJavaType.valueOf(value.dtype.name());
        return OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), value.direct(), value.shape, type);
    }

    private static final class OrtProgram implements Session {
        private final OrtSession session;
        private final Map<String, OnnxTensorLike> constants; // onnxruntime reads them as long as the session lives

        OrtProgram(OrtSession session, Map<String, OnnxTensorLike> constants) {
            this.session = session;
            this.constants = constants;
        }

        @Override
        public List<TensorData> run(List<TensorData> inputs) throws OrtException, BadFileException {
            Map<String, OnnxTensorLike> feeds = new HashMap<>();
            Iterator<String> names = session.getInputNames().iterator();
            for (TensorData input : inputs) {
                feeds.put(names.next(), tensor(input));
            }
            List<TensorData> outputs = new ArrayList<>();
            try (OrtSession.Result result = session.run(feeds)) {
                for (Map.Entry<String, OnnxValue> named : result) {
                    OnnxTensor output = (OnnxTensor) named.getValue();
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

        private static void close(Map<String, OnnxTensorLike> tensors) {
            for (OnnxTensorLike tensor : tensors.values()) {
                tensor.close();
            }
        }
    }
}
