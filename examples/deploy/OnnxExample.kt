import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.FloatBuffer

/** model.onnx on onnxruntime alone, nothing of ours in the app. */
class OnnxClassifier(path: String) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(path)

    fun scores(pixels: FloatArray): FloatArray =
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(pixels), longArrayOf(1, 1, 8, 8)).use { image ->
            session.run(mapOf("image" to image)).use { found -> (found[0] as OnnxTensor).floatBuffer.array() }
        }

    override fun close() = session.close()
}
