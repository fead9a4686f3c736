package qndeploy;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** A table blob, version 2 or 3: codes and centroids that stand for a dense weight. exporters/to_executorch/README.md specifies the bytes. */
final class TableBlob {
    private static final String MAGIC = "\u0089QNTABLE\u0085\u00f3\u00ed\u001bqMz/";
    private static final int HEADER = 40;
    private static final int PLAIN = 2, CODED = 3; // versions
    private static final int OSI = 1, SIO = 2, ISO = 3;

    private final ByteBuffer bytes; // the arrays
    private final boolean coded;
    private final int layout;
    private final long rows, group, inner, spatial, block; // group: rows in each
    private final float[] scales;
    private final byte[] values; // int8 [rows, inner, spatial], to which each table adds

    /** Reads a blob and checks every rule of the format. */
    TableBlob(byte[] blob) throws BadFileException {
        ByteBuffer header = ByteBuffer.wrap(blob).order(ByteOrder.LITTLE_ENDIAN);
        check(blob.length >= HEADER && new String(blob, 0, 16, StandardCharsets.ISO_8859_1).equals(MAGIC), "it does not start as one");
        int dtype = blob[18];
        layout = blob[19];
        int tables = blob[20];
        int version = header.getShort(16);
        coded = version == CODED;
        boolean known = (version == PLAIN || coded) && (dtype == 1 || dtype == 2) && layout >= 0 && layout <= ISO && (tables == 1 || tables == 2);
        check(known, "version, type, layout or number of tables is unknown");
        rows = unsigned(header, 24);
        inner = unsigned(header, 28);
        spatial = unsigned(header, 32);
        block = unsigned(header, 36);
        check(rows > 0 && inner > 0 && spatial > 0 && block > 0 && inner <= 0xffffffffL / spatial, "its shape is out of range");
        int groups = 1 + (header.getInt(20) >>> 8);
        check(rows % groups == 0, "its rows are not in groups of one size");
        group = rows / groups;
        long row = inner * spatial;
        int width = dtype == 2 ? 4 : 1;
        check(row % block == 0 && rows <= Integer.MAX_VALUE / width / row, "blocks do not fill its rows, or it is too large for this app");
        bytes = coded ? inflated(blob, header) : header;
        bytes.position(coded ? 0 : HEADER);
        long held = bytes.remaining();
        check(block <= held && rows * (row / block) / 2 <= held, "it ends within its codes"); // before memory is taken for it
        scales = dtype == 2 ? new float[(int) rows] : null;
        if (scales != null) {
            take(4 * rows, "scales").asFloatBuffer().get(scales);
            for (float scale : scales) {
                check(scale > 0 && scale <= Float.MAX_VALUE, "a scale is not positive and finite");
            }
        }
        values = new byte[(int) (rows * row)];
        for (int i = 0; i < tables; i++) {
            addTable(row / block);
        }
        check(!bytes.hasRemaining(), "something follows its codes");
    }

    /** The dense weight's bytes: int8, or float32 with the scales multiplied in. */
    byte[] dense() {
        byte[] dense = new byte[values.length * (scales == null ? 1 : 4)];
        ByteBuffer floats = ByteBuffer.wrap(dense).order(ByteOrder.LITTLE_ENDIAN);
        int element = 0;
        for (int o = 0; o < rows; o++) {
            long m = o % group; // the row's number in its group
            long start = (o - m) * inner * spatial;
            for (int i = 0; i < inner; i++) {
                for (int p = 0; p < spatial; p++) {
                    byte value = values[element++];
                    int at = (int) (start + index(m, i, p));
                    if (scales == null) {
                        dense[at] = value;
                    } else {
                        floats.putFloat(4 * at, scales[o] * value);
                    }
                }
            }
        }
        return dense;
    }

    private long index(long m, long i, long p) {
        switch (layout) {
            case OSI: return (m * spatial + p) * inner + i;
            case SIO: return (p * inner + i) * group + m;
            case ISO: return (i * spatial + p) * group + m;
            default: return (m * inner + i) * spatial + p;
        }
    }

    /** Reads centroids [books, size, block] and codes [rows, columns], and adds the centroids that the codes name. */
    private void addTable(long columns) throws BadFileException {
        ByteBuffer sizes = take(8, "a table");
        long books = sizes.getInt();
        long size = sizes.getInt();
        check(books >= 1 && books <= columns && size >= 1 && size <= 65536, "codebooks or centroids are out of range");
        check(size * block <= bytes.remaining(), "it ends within its centroids"); // the next product stays below 2^63
        ByteBuffer centroids = take(books * size * block, "its centroids");
        for (int i = 0; i < centroids.limit(); i++) {
            check(centroids.get(i) != -128, "a centroid is -128");
        }
        long count = rows * columns;
        ByteBuffer codes = take(size > 256 ? 2 * count : size > 16 ? count : (count + 1) / 2, "its codes");
        check(size > 16 || count % 2 == 0 || codes.get((int) (count / 2)) >> 4 == 0, "the half byte after its codes is not 0");
        for (int i = 0; i < count; i++) {
            int code = size > 256 ? wide(codes, i) : size > 16 ? codes.get(i) & 255 : codes.get(i / 2) >> i % 2 * 4 & 15;
            check(code < size, "a code has no centroid");
            long centroid = i % columns * books / columns * size + code;
            for (int t = 0; t < block; t++) {
                int at = (int) (i * block + t);
                values[at] = (byte) Math.max(-127, Math.min(127, values[at] + centroids.get((int) (centroid * block + t))));
            }
        }
    }

    /** A code of 16 bits. In a coded blob all low bytes come first. */
    private int wide(ByteBuffer codes, int i) {
        return coded ? codes.get(i) & 255 | (codes.get(codes.limit() / 2 + i) & 255) << 8 : codes.getShort(2 * i) & 0xffff;
    }

    private ByteBuffer take(long size, String what) throws BadFileException {
        check(size <= bytes.remaining(), "it ends within " + what);
        ByteBuffer taken = bytes.slice().order(ByteOrder.LITTLE_ENDIAN);
        taken.limit((int) size);
        bytes.position(bytes.position() + (int) size);
        return taken;
    }

    /** The arrays of a coded blob. */
    private static ByteBuffer inflated(byte[] blob, ByteBuffer header) throws BadFileException {
        check(blob.length >= HEADER + 4, "it ends within its header");
        byte[] stream = Arrays.copyOfRange(blob, HEADER + 4, blob.length);
        return ByteBuffer.wrap(Streams.inflate("table blob", stream, header.getInt(HEADER))).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static long unsigned(ByteBuffer header, int at) {
        return header.getInt(at) & 0xffffffffL;
    }

    private static void check(boolean holds, String otherwise) throws BadFileException {
        BadFileException.check(holds, "table blob: " + otherwise);
    }
}
