package qndeploy;

import static qndeploy.BadFileException.check;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/** A tensor: type, shape and values, row-major and little-endian as every Android device is. It never changes. */
public final class TensorData {
    /** Element types by onnxruntime's name, with the name in safetensors files and the bytes of an element. */
    public enum DType {
        FLOAT("F32", 4), DOUBLE("F64", 8), INT64("I64", 8), INT32("I32", 4), INT16("I16", 2), INT8("I8", 1), UINT8("U8", 1), BOOL("BOOL", 1);

        public final String code;
        public final int bytes;

        DType(String code, int bytes) {
            this.code = code;
            this.bytes = bytes;
        }

        static DType of(String code) throws BadFileException {
            for (DType dtype : values()) {
                if (dtype.code.equals(code)) {
                    return dtype;
                }
            }
            throw new BadFileException("a tensor of type " + code + "; this app reads " + Arrays.toString(values()));
        }
    }

    public final DType dtype;
    public final long[] shape;
    private final ByteBuffer data;

    /** Takes the bytes from the buffer's position to its limit, without a copy. */
    public TensorData(DType dtype, long[] shape, ByteBuffer data) throws BadFileException {
        this.dtype = dtype;
        this.shape = shape;
        this.data = data.slice().order(ByteOrder.LITTLE_ENDIAN);
        long count = 1;
        for (long size : shape) {
            count = size >= 0 && (size == 0 || count <= Integer.MAX_VALUE / size) ? count * size : Integer.MAX_VALUE;
        }
        check(count * dtype.bytes == data.remaining(), "a tensor " + this + " of " + data.remaining() + " bytes");
    }

    /** Float values of this shape. */
    public static TensorData of(float[] values, long... shape) throws BadFileException {
        ByteBuffer bytes = ByteBuffer.allocateDirect(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(values);
        return new TensorData(DType.FLOAT, shape, bytes);
    }

    /** The values of a float tensor, row-major. */
    public float[] floats() {
        if (dtype != DType.FLOAT) {
            throw new IllegalStateException("a tensor " + this + " holds no floats");
        }
        float[] values = new float[count()];
        data().asFloatBuffer().get(values);
        return values;
    }

    public ByteBuffer data() {
        return data.duplicate().order(ByteOrder.LITTLE_ENDIAN);
    }

    /** A copy outside of Java's heap, from where runtimes read without another; aligned, as what lies in a file may not be. */
    ByteBuffer direct() {
        ByteBuffer direct = ByteBuffer.allocateDirect(data.capacity()).order(ByteOrder.nativeOrder());
        direct.put(data());
        direct.rewind();
        return direct;
    }

    public int count() {
        return data.capacity() / dtype.bytes;
    }

    /** Type and shape, as "F32 [8, 10]". */
    @Override
    public String toString() {
        return dtype.code + " " + Arrays.toString(shape);
    }

    public double value(int index) {
        switch (dtype) {
            case FLOAT: return data.getFloat(4 * index);
            case DOUBLE: return data.getDouble(8 * index);
            case INT64: return data.getLong(8 * index);
            case INT32: return data.getInt(4 * index);
            case INT16: return data.getShort(2 * index);
            case INT8: return data.get(index);
            default: return data.get(index) & 255;
        }
    }

    /** Index of the first largest of the `width` values from `begin`; -1 if NaN is among them. */
    public int argmax(int begin, int width) {
        int best = 0;
        for (int i = 0; i < width; i++) {
            double value = value(begin + i);
            if (Double.isNaN(value)) {
                return -1;
            }
            best = value > value(begin + best) ? i : best;
        }
        return best;
    }

    /** The first entry along the first dimension: one example of a batch. */
    public TensorData first() throws BadFileException {
        long[] one = shape.clone();
        one[0] = 1;
        ByteBuffer bytes = data();
        bytes.limit((int) (data.capacity() / shape[0]));
        return new TensorData(dtype, one, bytes);
    }
}
