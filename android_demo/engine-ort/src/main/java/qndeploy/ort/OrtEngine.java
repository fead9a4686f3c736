package qndeploy.ort;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxTensorLike;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
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
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        Map<String, OnnxTensor> constants = new LinkedHashMap<>();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT);
            options.setIntraOpNumThreads(1); // small models: more threads cost more than they give
            options.addConfigEntry("session.x64quantprecision", "1"); // emulators on x86 without VNNI would saturate; ARM ignores it
            if (file.equals(ShellForm.SHELL)) {
                constants = tensors(environment, ShellForm.constants(model.read(ShellForm.SIDECAR)));
                options.addExternalInitializers(new LinkedHashMap<String, OnnxTensorLike>(constants));
            }
            return new OrtProgram(environment, environment.createSession(program, options), constants);
        }
    }

    private static Map<String, OnnxTensor> tensors(OrtEnvironment environment, Map<String, TensorData> values) throws OrtException {
        Map<String, OnnxTensor> tensors = new LinkedHashMap<>();
        for (Map.Entry<String, TensorData> entry : values.entrySet()) {
            TensorData value = entry.getValue();
            tensors.put(entry.getKey(), OnnxTensor.createTensor(environment, value.direct(), value.shape, OnnxJavaType.valueOf(value.dtype.name())));
        }
        return tensors;
    }

    private static final class OrtProgram implements Session {
        private final OrtEnvironment environment;
        private final OrtSession session;
        private final Map<String, OnnxTensor> constants; // onnxruntime reads them as long as the session lives

        OrtProgram(OrtEnvironment environment, OrtSession session, Map<String, OnnxTensor> constants) {
            this.environment = environment;
            this.session = session;
            this.constants = constants;
        }

        @Override
        public List<TensorData> run(List<TensorData> inputs) throws OrtException, BadFileException {
            Map<String, TensorData> named = new LinkedHashMap<>();
            for (String name : session.getInputNames()) {
                named.put(name, inputs.get(named.size()));
            }
            Map<String, OnnxTensor> feeds = tensors(environment, named);
            List<TensorData> outputs = new ArrayList<>();
            try (OrtSession.Result result = session.run(feeds)) {
                for (int i = 0; i < result.size(); i++) {
                    OnnxTensor output = (OnnxTensor) result.get(i);
                    TensorData.DType dtype = TensorData.DType.valueOf(output.getInfo().type.name());
                    outputs.add(new TensorData(dtype, output.getInfo().getShape(), output.getByteBuffer()));
                }
            } finally {
                close(feeds);
            }
            return outputs;
        }

        @Override
        public void close() throws IOException {
            try {
                session.close();
            } catch (OrtException error) {
                throw new IOException(error);
            }
            close(constants);
        }

        private static void close(Map<String, OnnxTensor> tensors) {
            for (OnnxTensor tensor : tensors.values()) {
                tensor.close();
            }
        }
    }
}
