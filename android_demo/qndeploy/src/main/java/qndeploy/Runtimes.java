package qndeploy;

import static qndeploy.BadFileException.check;

import java.util.Locale;

/** The runtimes that the app carries: whatever is on its class path. */
enum Runtimes {
    ONNXRUNTIME("ai.onnxruntime.OrtEnvironment", "com.microsoft.onnxruntime:onnxruntime-android") {
        @Override
        Engine.Program open(QnBuild build, String file) throws Exception {
            return new OrtProgram(build, file);
        }
    },
    EXECUTORCH("org.pytorch.executorch.Module", "org.pytorch:executorch-android") {
        @Override
        Engine.Program open(QnBuild build, String file) throws Exception {
            return new ExecuTorchProgram(build, file);
        }
    };

    private final String type, library;

    Runtimes(String type, String library) {
        this.type = type;
        this.library = library;
    }

    abstract Engine.Program open(QnBuild build, String file) throws Exception;

    static Runtimes of(String file) {
        return file.endsWith(".onnx") ? ONNXRUNTIME : EXECUTORCH;
    }

    /** True if the app has its Java classes; whether its native library loads is seen when a program is opened. */
    boolean isThere() {
        try {
            Class.forName(type, false, Runtimes.class.getClassLoader());
            return true;
        } catch (ClassNotFoundException | LinkageError missing) {
            return false;
        }
    }

    /** Loads a program on its runtime. */
    static Engine.Program load(QnBuild build, String file) throws Exception {
        Runtimes runtime = of(file);
        check(runtime.isThere(), file + " needs the library " + runtime.library + ", which is not in this app");
        return runtime.open(build, file);
    }

    @Override
    public String toString() {
        return name().toLowerCase(Locale.ROOT);
    }
}
