package qndeploy.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;

/** A table blob, version 2: codes and centroids that stand for a dense weight. exporters/to_executorch/README.md specifies the bytes. */
public final class TableBlob {
    private static final byte[] MAGIC = {
        (byte) 0x89, 'Q', 'N', 'T', 'A', 'B', 'L', 'E', (byte) 0x85, (byte) 0xf3, (byte) 0xed, 0x1b, 0x71, 0x4d, 0x7a, 0x2f
    };
    private static final int HEADER = 40;
    private static final int OSI = 1, SIO = 2, ISO = 3;

    private final ByteBuffer bytes;
    private final int layout;
    private final long rows, inner, spatial, block, columns;
    private final float[] scales;
    private final Table[] tables;

    /** Reads a blob and checks every rule of the format. */
    public TableBlob(byte[] blob) throws BadFileException {
        bytes = ByteBuffer.wrap(blob).order(ByteOrder.LITTLE_ENDIAN);
        check(blob.length >= HEADER && Arrays.equals(Arrays.copyOf(blob, MAGIC.length), MAGIC), "it does not start as one");
        int dtype = blob[18];
        layout = blob[19];
        boolean known = bytes.getShort(16) == 2 && (dtype == 1 || dtype == 2) && layout >= 0 && layout <= ISO && (blob[20] == 1 || blob[20] == 2);
        check(known && blob[21] == 0 && blob[22] == 0 && blob[23] == 0, "version, type, layout or number of tables is unknown");
        rows = unsigned(24);
        inner = unsigned(28);
        spatial = unsigned(32);
        block = unsigned(36);
        check(rows > 0 && inner > 0 && spatial > 0 && block > 0 && inner <= 0xffffffffL / spatial, "its shape is out of range");
        long row = inner * spatial;
        int width = dtype == 2 ? 4 : 1;
        check(row % block == 0 && rows <= Integer.MAX_VALUE / width / row, "blocks do not fill its rows, or it is too large for this app");
        columns = row / block;
        bytes.position(HEADER);
        scales = dtype == 2 ? new float[(int) rows] : null;
        if (scales != null) {
            take(4 * rows, "scales").asFloatBuffer().get(scales);
            for (float scale : scales) {
                check(scale > 0 && scale <= Float.MAX_VALUE, "a scale is not positive and finite");
            }
        }
        tables = new Table[blob[20]];
        for (int i = 0; i < tables.length; i++) {
            tables[i] = new Table();
        }
        check(!bytes.hasRemaining(), "something follows its codes");
    }

    /** Number of elements of the dense weight. */
    public long count() {
        return rows * inner * spatial;
    }

    /** The dense weight's bytes: int8, or float32 with the scales multiplied in. */
    public byte[] dense() {
        byte[] dense = new byte[(int) count() * (scales == null ? 1 : 4)];
        ByteBuffer floats = ByteBuffer.wrap(dense).order(ByteOrder.LITTLE_ENDIAN);
        for (int o = 0; o < rows; o++) {
            for (int b = 0; b < columns; b++) {
                int first = tables[0].start(o, b);
                int second = tables.length == 2 ? tables[1].start(o, b) : 0;
                for (int t = 0; t < block; t++) {
                    int value = tables[0].centroids[first + t];
                    if (tables.length == 2) {
                        value = Math.max(-127, Math.min(127, value + tables[1].centroids[second + t]));
                    }
                    int index = index(o, b * block + t);
                    if (scales == null) {
                        dense[index] = (byte) value;
                    } else {
                        floats.putFloat(4 * index, scales[o] * value);
                    }
                }
            }
        }
        return dense;
    }

    private int index(long o, long element) {
        long i = element / spatial;
        long p = element % spatial;
        switch (layout) {
            case OSI: return (int) ((o * spatial + p) * inner + i);
            case SIO: return (int) ((p * inner + i) * rows + o);
            case ISO: return (int) ((i * spatial + p) * rows + o);
            default: return (int) ((o * inner + i) * spatial + p);
        }
    }

    /** Centroids [books, size, block] and codes [rows, columns], which lie next in the blob. */
    private final class Table {
        final int books, size;
        final byte[] centroids;
        final ByteBuffer codes;

        Table() throws BadFileException {
            ByteBuffer sizes = take(8, "a table");
            books = sizes.getInt();
            size = sizes.getInt();
            check(books >= 1 && books <= columns && size >= 1 && size <= 65536, "codebooks or centroids are out of range");
            check(block * size <= Integer.MAX_VALUE, "it ends within its centroids"); // or the next product would exceed a long
            ByteBuffer values = take(books * block * size, "its centroids");
            centroids = new byte[values.remaining()];
            values.get(centroids);
            for (byte value : centroids) {
                check(value != -128, "a centroid is -128");
            }
            long count = rows * columns;
            codes = take(size > 256 ? 2 * count : size > 16 ? count : (count + 1) / 2, "codes");
            for (long i = 0; i < count; i++) {
                check(code(i) < size, "a code has no centroid");
            }
            check(size > 16 || count % 2 == 0 || code(count) == 0, "the half byte after its codes is not 0");
        }

        int code(long index) {
            if (size > 256) {
                return codes.getShort((int) (2 * index)) & 0xffff;
            }
            int bits = codes.get((int) (size > 16 ? index : index / 2)) & 255;
            return size > 16 ? bits : index % 2 == 0 ? bits & 15 : bits >> 4;
        }

        /** Where the centroid of block b of row o starts. */
        int start(long o, long b) {
            return (int) ((b * books / columns * size + code(o * columns + b)) * block);
        }
    }

    private ByteBuffer take(long size, String what) throws BadFileException {
        check(size <= bytes.remaining(), "it ends within " + what);
        ByteBuffer taken = bytes.slice().order(ByteOrder.LITTLE_ENDIAN);
        taken.limit((int) size);
        bytes.position(bytes.position() + (int) size);
        return taken;
    }

    private long unsigned(int at) {
        return bytes.getInt(at) & 0xffffffffL;
    }

    private static void check(boolean holds, String otherwise) throws BadFileException {
        BadFileException.check(holds, "table blob: " + otherwise);
    }
}
