package qndeploy;

/**
 * libqn_onnx_ops.so, if the app has it: with it, layers of a model.onnx that was exported with --memory multiply by their tables. Without it onnxruntime expands
 * the tables when it loads the file, and computes the same.
 */
final class TableLibrary {
    static final String FILE = System.mapLibraryName("qn_onnx_ops"); // onnxruntime finds it by that once it is loaded
    static final boolean IS_THERE = load();

    private TableLibrary() {}

    private static boolean load() {
        try {
            System.loadLibrary("qn_onnx_ops");
            return true;
        } catch (UnsatisfiedLinkError missing) {
            return false;
        }
    }
}
