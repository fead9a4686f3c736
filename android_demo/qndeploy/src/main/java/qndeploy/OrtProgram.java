package qndeploy;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxTensorLike;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import org.json.JSONException;

/** A program on onnxruntime: model.onnx as it is, or the shell form with its constants decoded here. */
final class OrtProgram implements Engine.Program {
    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final OrtSession session;
    private final Map<String, OnnxTensorLike> constants; // onnxruntime reads them as long as the session lives

    OrtProgram(QnBuild build, String file) throws IOException, JSONException, OrtException {
        this(build, file, TableLibrary.IS_THERE);
    }

    OrtProgram(QnBuild build, String file, boolean keepsTables) throws IOException, JSONException, OrtException {
        environment.setTelemetry(false); // some builds of onnxruntime have it on
        ByteBuffer program = build.read(file); // mapped: onnxruntime reads the asset where it lies
        boolean isShell = file.equals(ShellForm.SHELL);
        constants = isShell ? tensors(ShellForm.constants(build.read(ShellForm.SIDECAR))) : new HashMap<>();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setIntraOpNumThreads(1); // small models: more threads cost more than they give
            options.addConfigEntry("session.x64quantprecision", "1"); // emulators on x86 without VNNI would saturate; ARM ignores it
            if (keepsTables) {
                options.registerCustomOpLibrary(TableLibrary.FILE);
            }
            if (isShell) {
                options.addExternalInitializers(constants);
            }
            session = environment.createSession(program, options);
        } catch (OrtException | RuntimeException error) {
            close(constants);
            throw error;
        }
    }

    @Override
    public List<TensorData> run(List<TensorData> inputs) throws BadFileException, OrtException {
        Map<String, TensorData> named = new HashMap<>();
        Iterator<String> names = session.getInputNames().iterator();
        for (TensorData input : inputs) {
            named.put(names.next(), input);
        }
        Map<String, OnnxTensorLike> feeds = tensors(named);
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

    /** All of them, or none: those made before one that fails are closed. */
    private Map<String, OnnxTensorLike> tensors(Map<String, TensorData> values) throws OrtException {
        Map<String, OnnxTensorLike> tensors = new HashMap<>();
        try {
            for (Map.Entry<String, TensorData> entry : values.entrySet()) {
                TensorData value = entry.getValue();
                OnnxJavaType type = OnnxJavaType.valueOf(value.dtype.name());
                tensors.put(entry.getKey(), OnnxTensor.createTensor(environment, value.direct(), value.shape, type));
            }
        } catch (OrtException | RuntimeException error) {
            close(tensors);
            throw error;
        }
        return tensors;
    }

    private static void close(Map<String, OnnxTensorLike> tensors) {
        for (OnnxTensorLike tensor : tensors.values()) {
            tensor.close();
        }
    }
}
