package org.pytorch.executorch;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;

/**
 * Stand-in for the class of the official Android library, for compilation and for tests on a JVM: the signatures that the engine uses, and
 * behind them the ExecuTorch of the Python package in a child process. Never part of the app.
 */
public final class Module {
    public static final int LOAD_MODE_MMAP = 1;
    private static DataOutputStream out;
    private static DataInputStream in;
    private final String path;

    private Module(String path) {
        this.path = path;
    }

    public static Module load(String path, int loadMode, int numThreads) {
        try {
            if (out == null) {
                ProcessBuilder builder = new ProcessBuilder(System.getProperty("qn.python"), System.getProperty("qn.executorch"));
                Process child = builder.redirectError(ProcessBuilder.Redirect.INHERIT).start(); // ends when its input ends: with this process
                out = new DataOutputStream(new BufferedOutputStream(child.getOutputStream()));
                in = new DataInputStream(new BufferedInputStream(child.getInputStream()));
            }
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
        return new Module(path);
    }

    public EValue[] forward(EValue... inputs) {
        try {
            out.writeUTF(path);
            out.writeInt(inputs.length);
            for (EValue input : inputs) {
                write(input.toTensor());
            }
            out.flush();
            int count = in.readInt();
            if (count < 0) {
                throw new IllegalStateException(in.readUTF());
            }
            EValue[] outputs = new EValue[count];
            for (int i = 0; i < outputs.length; i++) {
                outputs[i] = EValue.from(read());
            }
            return outputs;
        } catch (IOException error) {
            throw new IllegalStateException("the child process ended", error);
        }
    }

    public void destroy() {}

    private static void write(Tensor tensor) throws IOException {
        ByteBuffer bytes = ByteBuffer.allocate((int) tensor.numel() * 8).order(ByteOrder.LITTLE_ENDIAN);
        int width = 1;
        if (tensor.data instanceof FloatBuffer) {
            bytes.asFloatBuffer().put(tensor.getDataAsFloatArray());
            width = 4;
        } else if (tensor.data instanceof DoubleBuffer) {
            bytes.asDoubleBuffer().put(tensor.getDataAsDoubleArray());
            width = 8;
        } else if (tensor.data instanceof LongBuffer) {
            bytes.asLongBuffer().put(tensor.getDataAsLongArray());
            width = 8;
        } else if (tensor.data instanceof IntBuffer) {
            bytes.asIntBuffer().put(tensor.getDataAsIntArray());
            width = 4;
        } else {
            bytes.put(tensor.getDataAsByteArray());
        }
        out.writeUTF(tensor.dtype().name());
        out.writeInt(tensor.shape().length);
        for (long size : tensor.shape()) {
            out.writeLong(size);
        }
        out.write(bytes.array(), 0, (int) tensor.numel() * width);
    }

    private static Tensor read() throws IOException {
        DType dtype = DType.valueOf(in.readUTF());
        long[] shape = new long[in.readInt()];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = in.readLong();
        }
        byte[] data = new byte[in.readInt()];
        in.readFully(data);
        ByteBuffer direct = ByteBuffer.allocateDirect(data.length).order(ByteOrder.nativeOrder());
        direct.put(data);
        direct.rewind();
        switch (dtype) {
            case FLOAT:
                return Tensor.fromBlob(direct.asFloatBuffer(), shape);
            case DOUBLE:
                return Tensor.fromBlob(direct.asDoubleBuffer(), shape);
            case INT64:
                return Tensor.fromBlob(direct.asLongBuffer(), shape);
            case INT32:
                return Tensor.fromBlob(direct.asIntBuffer(), shape);
            case INT8:
                return Tensor.fromBlob(direct, shape);
            default:
                return Tensor.fromBlobUnsigned(direct, shape);
        }
    }
}
