package qndeploy;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.zip.CRC32;

/** The stock form, version 1 (model.stock.qnz): rebuilds a plain stock .pte. exporters/to_executorch/README.md specifies the bytes. */
final class StockForm {
    private static final String MAGIC = "\u0089QNSTOCKw!\u0086\u0001\u00e0\t\u00cf\u000b";
    private static final int HEADER = 64;
    private static final int PIECE = 16;

    private StockForm() {}

    /** SHA-256 of the program that a container promises; null if it is none. */
    static byte[] digest(ByteBuffer container) {
        byte[] header = new byte[HEADER];
        if (container.remaining() < HEADER) {
            return null;
        }
        container.duplicate().get(header);
        return Arrays.copyOfRange(header, 32, HEADER);
    }

    /** Writes the program piece by piece; the file has its name only once all of it was checked. */
    static void rebuild(ByteBuffer container, File target) throws IOException {
        File unchecked = new File(target.getPath() + ".tmp");
        try {
            try (OutputStream out = new FileOutputStream(unchecked)) {
                write(container, out);
            }
            if (!unchecked.renameTo(target)) {
                throw new IOException("can't write " + target);
            }
        } finally {
            unchecked.delete(); // nothing is left of it if it was renamed
        }
    }

    private static void write(ByteBuffer container, OutputStream out) throws IOException {
        ByteBuffer bytes = container.slice().order(ByteOrder.LITTLE_ENDIAN);
        check(bytes.remaining() >= HEADER, "it does not start as one");
        byte[] header = new byte[HEADER];
        bytes.get(header);
        check(new String(header, 0, 16, StandardCharsets.ISO_8859_1).equals(MAGIC), "it does not start as one");
        check(bytes.getInt(16) == 1, "version " + bytes.getInt(16) + ", expected 1");
        long pieces = bytes.getInt(20) & 0xffffffffL;
        long left = bytes.getLong(24);
        check(pieces >= 1 && left >= 0, "no pieces, or a size out of range");
        MessageDigest digest = QnBuild.newSha256();
        for (long number = 0; number < pieces; number++) {
            check(bytes.remaining() >= PIECE, "it ends before piece " + number + " of " + pieces);
            int begin = bytes.position();
            int stored = bytes.getInt(begin + 8);
            int rebuilt = bytes.getInt(begin + 12);
            check(stored >= 1 && rebuilt >= 1 && stored <= bytes.remaining() - PIECE, "piece " + number + " is not within the file");
            byte[] piece = new byte[PIECE + stored];
            bytes.get(piece);
            CRC32 crc = new CRC32();
            crc.update(piece, 4, piece.length - 4);
            check((int) crc.getValue() == bytes.getInt(begin), "piece " + number + " is damaged: its CRC-32 differs");
            left -= rebuilt;
            check(left >= 0, "its pieces hold more than its header promises");
            byte[] data = expand(bytes.getInt(begin + 4), Arrays.copyOfRange(piece, PIECE, piece.length), rebuilt);
            check(data.length == rebuilt, "piece " + number + " stands for " + data.length + " bytes, expected " + rebuilt);
            digest.update(data);
            out.write(data);
        }
        check(left == 0 && !bytes.hasRemaining(), "its pieces hold less than its header promises, or something follows them");
        check(Arrays.equals(digest.digest(), Arrays.copyOfRange(header, 32, HEADER)), "the program rebuilt from it has another SHA-256");
    }

    private static byte[] expand(int kind, byte[] stored, int rebuilt) throws IOException {
        check(kind >= 0 && kind <= 2, "a piece of kind " + kind);
        return kind == 0 ? stored : kind == 1 ? Streams.inflate("stock form", stored, rebuilt) : new TableBlob(stored).dense();
    }

    private static void check(boolean holds, String otherwise) throws BadFileException {
        BadFileException.check(holds, "stock form: " + otherwise);
    }
}
