package qndeploy

import android.content.Context

/** The model of this name among the app's assets, loaded on the first runtime that the app carries. Takes a while: not on the main thread. */
fun Context.openQnModel(name: String): QnModel = QnModel.open(this, name)

/** The outputs for these inputs: `val (logits) = model(pixels.toTensor(1, 1, 8, 8))`. */
operator fun QnModel.invoke(vararg inputs: TensorData): List<TensorData> = run(inputs.asList())

/** Float values of this shape, row-major. */
fun FloatArray.toTensor(vararg shape: Long): TensorData = TensorData.of(this, *shape)
