package qndeploy;

import static qndeploy.BadFileException.check;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;
import org.json.JSONException;
import org.json.JSONObject;

/** The constants of a shell .onnx, from its sidecar model.shell.safetensors. exporters/to_onnx/README.md specifies the bytes. */
final class ShellForm {
    static final String SHELL = "model.shell.onnx";
    static final String SIDECAR = "model.shell.safetensors";

    private ShellForm() {}

    /** Dense constants by the name of the initializer that they are for. */
    static Map<String, TensorData> constants(ByteBuffer sidecar) throws BadFileException, JSONException {
        Safetensors file = new Safetensors(sidecar);
        JSONObject shapes = new JSONObject(file.metadata.getString("shapes"));
        Map<String, TensorData> constants = new HashMap<>(file.tensors);
        for (String name : Manifest.names(shapes)) {
            TensorData stored = file.tensors.get(name);
            check(stored != null && stored.dtype == TensorData.DType.UINT8, SIDECAR + " holds no table blob " + name);
            byte[] blob = new byte[stored.count()];
            stored.data().get(blob);
            long[] shape = Safetensors.longs(shapes.getJSONArray(name));
            constants.put(name, new TensorData(TensorData.DType.INT8, shape, ByteBuffer.wrap(new TableBlob(blob).dense())));
        }
        return constants;
    }
}
