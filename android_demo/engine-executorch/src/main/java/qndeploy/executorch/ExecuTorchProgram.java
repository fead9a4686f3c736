package qndeploy.executorch;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;
import qndeploy.core.BadFileException;
import qndeploy.core.Engine;
import qndeploy.core.Model;
import qndeploy.core.StockForm;
import qndeploy.core.TensorData;

/** A program on ExecuTorch: model.stock.qnz rebuilt into a stock .pte, or model.pte as it is, with our backend if the app links it. */
public final class ExecuTorchProgram implements Engine.Program {
    private static final String BACKEND = "qn_xnnpack_backend"; // libqn_xnnpack_backend.so, from exporters/to_executorch/native/
    private final Module module;

    public ExecuTorchProgram(Model model, String file) throws IOException {
        byte[] data = model.read(file);
        File program = new File(model.scratch, model.name + "." + file + ".pte"); // ExecuTorch loads from paths only
        if (file.endsWith(".qnz")) {
            StockForm.rebuild(data, program);
        } else {
            linkBackend();
            try (FileOutputStream out = new FileOutputStream(program)) {
                out.write(data);
            }
        }
        module = Module.load(program.getPath(), Module.LOAD_MODE_MMAP, 1);
    }

    @Override
    public List<TensorData> run(List<TensorData> inputs) throws BadFileException {
        EValue[] arguments = new EValue[inputs.size()];
        for (int i = 0; i < arguments.length; i++) {
            arguments[i] = EValue.from(tensor(inputs.get(i)));
        }
        List<TensorData> outputs = new ArrayList<>();
        for (EValue value : module.forward(arguments)) {
            outputs.add(value(value.toTensor()));
        }
        return outputs;
    }

    @Override
    public void close() {
        module.destroy();
    }

    private static void linkBackend() {
        try {
            System.loadLibrary(BACKEND);
        } catch (UnsatisfiedLinkError missing) {
            return; // a stock program needs none; for another one ExecuTorch names the backend that it misses
        }
    }

    private static Tensor tensor(TensorData value) {
        ByteBuffer bytes = value.direct();
        switch (value.dtype) {
            case FLOAT: return Tensor.fromBlob(bytes.asFloatBuffer(), value.shape);
            case DOUBLE: return Tensor.fromBlob(bytes.asDoubleBuffer(), value.shape);
            case INT64: return Tensor.fromBlob(bytes.asLongBuffer(), value.shape);
            case INT32: return Tensor.fromBlob(bytes.asIntBuffer(), value.shape);
            case INT8: return Tensor.fromBlob(bytes, value.shape);
            case UINT8: return Tensor.fromBlobUnsigned(bytes, value.shape);
            default: throw new IllegalArgumentException("ExecuTorch's Java API takes no tensors of type " + value.dtype);
        }
    }

    private static TensorData value(Tensor tensor) throws BadFileException {
        TensorData.DType dtype = TensorData.DType.valueOf(tensor.dtype().name());
        ByteBuffer bytes = ByteBuffer.allocate((int) tensor.numel() * dtype.bytes).order(ByteOrder.LITTLE_ENDIAN);
        switch (dtype) {
            case FLOAT: bytes.asFloatBuffer().put(tensor.getDataAsFloatArray()); break;
            case DOUBLE: bytes.asDoubleBuffer().put(tensor.getDataAsDoubleArray()); break;
            case INT64: bytes.asLongBuffer().put(tensor.getDataAsLongArray()); break;
            case INT32: bytes.asIntBuffer().put(tensor.getDataAsIntArray()); break;
            case INT8: bytes.duplicate().put(tensor.getDataAsByteArray()); break;
            case UINT8: bytes.duplicate().put(tensor.getDataAsUnsignedByteArray()); break;
            default: throw new BadFileException("the model returns a tensor of type " + dtype + ", which ExecuTorch's Java API does not read");
        }
        return new TensorData(dtype, tensor.shape(), bytes);
    }
}
