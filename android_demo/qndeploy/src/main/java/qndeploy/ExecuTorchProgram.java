package qndeploy;

import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;

/** A program on ExecuTorch: model.stock.qnz rebuilt into a stock .pte, or model.pte as it is, with our backend if it needs that. */
final class ExecuTorchProgram implements Engine.Program {
    private static final String BACKEND = "qn_xnnpack_backend"; // libqn_xnnpack_backend.so, from exporters/to_executorch/native/
    private final Module module;

    ExecuTorchProgram(QnBuild build, String file) throws IOException, ClassNotFoundException {
        if (build.manifest.files.get(file).needsBackend) {
            linkBackend(build.name + "/" + file);
        }
        module = Module.load(stored(build, file).getPath(), Module.LOAD_MODE_MMAP, 1);
    }

    /** ExecuTorch loads from paths only: the program as a file of the app's own, written once and checked by its hash ever after. */
    private static synchronized File stored(QnBuild build, String file) throws IOException {
        ByteBuffer data = build.read(file);
        boolean isContainer = file.endsWith(".qnz");
        byte[] expected = isContainer ? StockForm.digest(data) : QnBuild.sha256(data);
        File program = new File(build.storage, build.name + "." + file + ".pte");
        if (program.isFile() && Arrays.equals(QnBuild.sha256(map(program)), expected)) {
            return program;
        }
        if (isContainer) {
            StockForm.rebuild(data, program);
        } else {
            try (FileOutputStream out = new FileOutputStream(program)) {
                out.getChannel().write(data.duplicate());
            }
        }
        return program;
    }

    private static ByteBuffer map(File file) throws IOException {
        try (FileInputStream in = new FileInputStream(file)) {
            return in.getChannel().map(FileChannel.MapMode.READ_ONLY, 0, file.length());
        }
    }

    /** Registers our backend. ExecuTorch's own library comes first: the backend's needs are met by it, by its SONAME. */
    private static void linkBackend(String program) throws IOException, ClassNotFoundException {
        Class.forName("org.pytorch.executorch.Module");
        try {
            System.loadLibrary(BACKEND);
        } catch (UnsatisfiedLinkError error) {
            String remedy = "build it as README.md of android_demo tells, or take model.stock.qnz, which needs none";
            throw new IOException(program + " needs lib" + BACKEND + ".so in the app: " + error.getMessage() + "; " + remedy, error);
        }
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
