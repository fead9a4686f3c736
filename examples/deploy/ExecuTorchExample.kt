import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A stock .pte, as `qn-deploy unpack model.stock.qnz` makes it, on ExecuTorch alone, nothing of ours in the app. */
class ExecuTorchClassifier(path: String) {
    private val module = Module.load(path, Module.LOAD_MODE_MMAP)

    fun scores(pixels: FloatArray): FloatArray =
        module.forward(EValue.from(Tensor.fromBlob(pixels, longArrayOf(1, 1, 8, 8))))[0].toTensor().dataAsFloatArray

    fun close() = module.destroy()
}
