package org.pytorch.executorch;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;

/** Stand-in, see Module. Like the real one it takes direct buffers of native byte order that hold as much as the shape says. */
public final class Tensor {
    private final DType dtype;
    private final long[] shape;
    final Buffer data;

    private Tensor(DType dtype, Buffer data, long[] shape) {
        this.dtype = dtype;
        this.shape = shape.clone();
        this.data = data;
        if (!data.isDirect() || data.capacity() != numel()) {
            throw new IllegalArgumentException("buffer of " + data.capacity() + " elements, direct: " + data.isDirect());
        }
    }

    public static Tensor fromBlob(FloatBuffer data, long[] shape) {
        return new Tensor(DType.FLOAT, data, shape);
    }

    public static Tensor fromBlob(DoubleBuffer data, long[] shape) {
        return new Tensor(DType.DOUBLE, data, shape);
    }

    public static Tensor fromBlob(LongBuffer data, long[] shape) {
        return new Tensor(DType.INT64, data, shape);
    }

    public static Tensor fromBlob(IntBuffer data, long[] shape) {
        return new Tensor(DType.INT32, data, shape);
    }

    public static Tensor fromBlob(ByteBuffer data, long[] shape) {
        return new Tensor(DType.INT8, data, shape);
    }

    public static Tensor fromBlobUnsigned(ByteBuffer data, long[] shape) {
        return new Tensor(DType.UINT8, data, shape);
    }

    public DType dtype() {
        return dtype;
    }

    public long[] shape() {
        return shape.clone();
    }

    public long numel() {
        long count = 1;
        for (long size : shape) {
            count *= size;
        }
        return count;
    }

    public float[] getDataAsFloatArray() {
        float[] values = new float[data.capacity()];
        ((FloatBuffer) data.rewind()).get(values);
        return values;
    }

    public double[] getDataAsDoubleArray() {
        double[] values = new double[data.capacity()];
        ((DoubleBuffer) data.rewind()).get(values);
        return values;
    }

    public long[] getDataAsLongArray() {
        long[] values = new long[data.capacity()];
        ((LongBuffer) data.rewind()).get(values);
        return values;
    }

    public int[] getDataAsIntArray() {
        int[] values = new int[data.capacity()];
        ((IntBuffer) data.rewind()).get(values);
        return values;
    }

    public byte[] getDataAsByteArray() {
        byte[] values = new byte[data.capacity()];
        ((ByteBuffer) data.rewind()).get(values);
        return values;
    }

    public byte[] getDataAsUnsignedByteArray() {
        return getDataAsByteArray();
    }
}
