import android.content.Context
import qndeploy.invoke
import qndeploy.openQnModel
import qndeploy.toTensor

/** A model that `qn-deploy android` put among the assets. Off the main thread. */
fun scores(context: Context, pixels: FloatArray): FloatArray =
    context.openQnModel("mymodel").use { model -> model(pixels.toTensor(1, 1, 8, 8))[0].floats() }
