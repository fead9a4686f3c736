package qndeploy;

import java.util.List;

/** What loads programs: the runtimes of the app, or a stand-in of tests. */
public interface Engine {
    /** Loads a program. Throws whatever its runtime throws. */
    Program load(QnBuild build, String file) throws Exception;

    /** A loaded program. */
    interface Program extends AutoCloseable {
        List<TensorData> run(List<TensorData> inputs) throws Exception;
    }
}
