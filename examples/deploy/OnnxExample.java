import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.util.Map;

/** model.onnx on onnxruntime alone, nothing of ours in the app. */
final class OnnxExample implements AutoCloseable {
    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final OrtSession session;

    OnnxExample(String path) throws OrtException {
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.setIntraOpNumThreads(1); // small models: more threads cost more than they give
            session = environment.createSession(path, options);
        }
    }

    float[] scores(float[] pixels) throws OrtException {
        try (OnnxTensor image = OnnxTensor.createTensor(environment, FloatBuffer.wrap(pixels), new long[] {1, 1, 8, 8});
                OrtSession.Result found = session.run(Map.of("image", image))) {
            return ((float[][]) found.get(0).getValue())[0];
        }
    }

    @Override
    public void close() throws OrtException {
        session.close();
    }
}
