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

    /** Codes [rows, columns] and centroids [books, size, block]. */
    private static final class Table {
        int books, size;
        byte[] centroids;
        ByteBuffer codes;

        int code(long index) {
            if (size > 256) {
                return codes.getShort((int) (2 * index)) & 0xffff;
            }
            int bits = codes.get((int) (size > 16 ? index : index / 2)) & 255;
            return size > 16 ? bits : index % 2 == 0 ? bits & 15 : bits >> 4;
        }
    }

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
            tables[i] = readTable();
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
                int first = start(tables[0], o, b);
                int second = tables.length == 2 ? start(tables[1], o, b) : 0;
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

    /** Where the centroid of block b of row o starts. */
    private int start(Table table, long o, long b) {
        long book = b * table.books / columns;
        return (int) ((book * table.size + table.code(o * columns + b)) * block);
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

    private Table readTable() throws BadFileException {
        Table table = new Table();
        ByteBuffer sizes = take(8, "a table");
        table.books = sizes.getInt();
        table.size = sizes.getInt();
        check(table.books >= 1 && table.books <= columns && table.size >= 1 && table.size <= 65536, "codebooks or centroids are out of range");
        long centroids = block * table.size; // below 2^32 * 2^16, and the next product below 2^31 * 2^48
        check(centroids <= bytes.remaining() && table.books * centroids <= bytes.remaining(), "it ends within its centroids");
        table.centroids = new byte[(int) (table.books * centroids)];
        bytes.get(table.centroids);
        for (byte value : table.centroids) {
            check(value != -128, "a centroid is -128");
        }
        long codes = rows * columns;
        table.codes = take(table.size > 256 ? 2 * codes : table.size > 16 ? codes : (codes + 1) / 2, "codes");
        for (long i = 0; i < codes; i++) {
            check(table.code(i) < table.size, "a code has no centroid");
        }
        check(table.size > 16 || codes % 2 == 0 || table.code(codes) == 0, "the half byte after its codes is not 0");
        return table;
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
        if (!holds) {
            throw new BadFileException("table blob: " + otherwise);
        }
    }
}
