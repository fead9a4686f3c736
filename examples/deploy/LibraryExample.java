import android.content.Context;
import java.io.IOException;
import qndeploy.QnModel;
import qndeploy.TensorData;

/** A model that `qn-deploy android` put among the assets, by the library in android_demo/qndeploy: on whichever runtime the app carries. */
final class LibraryExample {
    /** Off the main thread. */
    static float[] scores(Context context, float[] pixels) throws IOException {
        try (QnModel model = QnModel.open(context, "mymodel")) {
            return model.run(TensorData.of(pixels, 1, 1, 8, 8)).get(0).floats();
        }
    }
}
