package qndeploy;

import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.util.zip.Inflater;
import java.util.zip.InflaterInputStream;

/** Zlib streams (RFC 1950) of a known size. */
final class Streams {
    private static final int MOST = 1032; // bytes that one byte of a zlib stream stands for

    private Streams() {}

    /** The bytes that a stream of a file stands for: as many as it should, and nothing after it. */
    static byte[] inflate(String file, byte[] stream, int size) throws BadFileException {
        boolean fits = size > 0 && size / MOST <= stream.length && stream.length > 0; // before memory is taken for it
        BadFileException.check(fits, file + ": a stream is too short for its size");
        byte[] data = new byte[size];
        Inflater inflater = new Inflater();
        try (DataInputStream in = new DataInputStream(new InflaterInputStream(new ByteArrayInputStream(stream), inflater, stream.length))) {
            in.readFully(data);
            BadFileException.check(in.read() < 0 && inflater.getRemaining() == 0, "it is not of its size");
        } catch (IOException error) {
            throw new BadFileException(file + ": a damaged stream: " + error.getMessage());
        } finally {
            inflater.end(); // closing the stream does not
        }
        return data;
    }
}
