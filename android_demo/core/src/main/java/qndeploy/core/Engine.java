package qndeploy.core;

import java.util.List;

/** A runtime that can load some of a model's files. */
public interface Engine {
    /** The runtime's name, as the manifest has it. */
    String runtime();

    /** True if it loads this file. */
    boolean takes(String file);

    /** Loads a program. Throws whatever the runtime throws, LinkageErrors among it if the app does not carry the runtime. */
    Session load(Model model, String file) throws Exception;

    /** A loaded program. */
    interface Session extends AutoCloseable {
        List<TensorData> run(List<TensorData> inputs) throws Exception;
    }
}
