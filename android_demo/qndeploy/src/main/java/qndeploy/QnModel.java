package qndeploy;

import android.content.Context;
import java.io.IOException;
import java.util.Arrays;
import java.util.List;

/**
 * A loaded program of an exported model.
 *
 * <pre>
 * try (QnModel digits = QnModel.open(context, "digits")) {
 *     float[] logits = digits.run(TensorData.of(pixels, 1, 1, 8, 8)).get(0).floats();
 * }
 * </pre>
 *
 * Opening reads files and takes a while: do it once, off the main thread. One thread at a time may use it.
 */
public final class QnModel implements AutoCloseable {
    /** The program file that was loaded. */
    public final String file;
    public final QnBuild build;
    private final Engine.Program program;

    private QnModel(QnBuild build, String file) throws IOException {
        this.build = build;
        this.file = file;
        try {
            program = Runtimes.load(build, file);
        } catch (IOException error) {
            throw error;
        } catch (Exception | LinkageError error) {
            throw new IOException(build.name + ": " + file + " can't be loaded: " + error.getMessage(), error);
        }
    }

    /**
     * Loads the first program of a model whose runtime is in the app.
     *
     * @throws BadFileException a file is damaged, or no runtime is there
     */
    public static QnModel open(Context context, String name) throws IOException {
        QnBuild build = QnBuild.of(context, name);
        for (String file : build.programs) {
            if (Runtimes.of(file).isThere()) {
                return open(build, file);
            }
        }
        throw new BadFileException(name + ": the app carries no runtime for any of " + build.programs);
    }

    /** Loads this program of a model. */
    public static QnModel open(QnBuild build, String file) throws IOException {
        return new QnModel(build, file);
    }

    /** The outputs for these inputs, in the order of the manifest. */
    public List<TensorData> run(List<TensorData> inputs) throws IOException {
        try {
            return program.run(inputs);
        } catch (IOException error) {
            throw error;
        } catch (Exception error) {
            throw new IOException(build.name + ": " + file + " failed: " + error.getMessage(), error);
        }
    }

    public List<TensorData> run(TensorData... inputs) throws IOException {
        return run(Arrays.asList(inputs));
    }

    @Override
    public void close() {
        try {
            program.close();
        } catch (Exception error) {
            throw new IllegalStateException(error); // no runtime has a reason to
        }
    }
}
