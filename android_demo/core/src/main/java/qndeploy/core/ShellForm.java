package qndeploy.core;

import java.nio.ByteBuffer;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The constants of a shell .onnx, from its sidecar model.shell.safetensors. exporters/to_onnx/README.md specifies the bytes. */
public final class ShellForm {
    public static final String SHELL = "model.shell.onnx";
    public static final String SIDECAR = "model.shell.safetensors";

    private ShellForm() {}

    /** Dense constants by the name of the initializer that they are for. */
    public static Map<String, TensorData> constants(byte[] sidecar) throws BadFileException {
        Safetensors file = new Safetensors(sidecar);
        Map<String, Object> shapes = Json.parse(Json.get(file.metadata, "shapes", String.class).getBytes());
        Map<String, TensorData> constants = new LinkedHashMap<>();
        for (Map.Entry<String, TensorData> entry : file.tensors.entrySet()) {
            String name = entry.getKey();
            constants.put(name, shapes.containsKey(name) ? decode(name, entry.getValue(), Json.get(shapes, name, List.class)) : entry.getValue());
        }
        return constants;
    }

    private static TensorData decode(String name, TensorData stored, List<?> shape) throws BadFileException {
        if (stored.dtype != TensorData.DType.UINT8 || stored.shape.length != 1) {
            throw new BadFileException(SIDECAR + ": " + name + " is " + stored.form() + ", expected the bytes of a table blob");
        }
        byte[] blob = new byte[stored.count()];
        stored.data().get(blob);
        return new TensorData(TensorData.DType.INT8, Safetensors.longs(shape), ByteBuffer.wrap(new TableBlob(blob).dense()));
    }
}
