package qndeploy.core;

import java.util.List;

/** The runtimes of an app. */
public interface Engine {
    /** Loads a program. Throws whatever its runtime throws, LinkageErrors among it if the app does not carry the runtime. */
    Program load(Model model, String file) throws Exception;

    /** A loaded program. */
    interface Program extends AutoCloseable {
        List<TensorData> run(List<TensorData> inputs) throws Exception;
    }
}
