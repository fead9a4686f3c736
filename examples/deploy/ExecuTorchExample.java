import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;

/** A stock .pte, as `qn-deploy unpack model.stock.qnz` makes it, on ExecuTorch alone, nothing of ours in the app. */
final class ExecuTorchExample {
    private final Module module;

    ExecuTorchExample(String path) {
        module = Module.load(path, Module.LOAD_MODE_MMAP);
    }

    float[] scores(float[] pixels) {
        return module.forward(EValue.from(Tensor.fromBlob(pixels, new long[] {1, 1, 8, 8})))[0].toTensor().getDataAsFloatArray();
    }

    void close() {
        module.destroy();
    }
}
