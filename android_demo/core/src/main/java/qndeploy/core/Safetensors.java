package qndeploy.core;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A safetensors file: 8 bytes with the length of the header, the header in JSON, the tensors' bytes. */
public final class Safetensors {
    public final Map<String, TensorData> tensors = new LinkedHashMap<>();
    public final Map<String, Object> metadata;

    public Safetensors(byte[] file) throws BadFileException {
        ByteBuffer bytes = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN);
        long length = file.length < 8 ? -1 : bytes.getLong(0);
        if (length < 2 || length > file.length - 8) {
            throw new BadFileException("safetensors file of " + file.length + " bytes with a header of " + length);
        }
        byte[] header = new byte[(int) length];
        bytes.position(8);
        bytes.get(header);
        Map<String, Object> entries = Json.parse(header);
        metadata = entries.containsKey("__metadata__") ? Json.object(entries, "__metadata__") : new LinkedHashMap<String, Object>();
        entries.remove("__metadata__");
        for (String name : entries.keySet()) {
            Map<String, Object> entry = Json.object(entries, name);
            long[] offsets = longs(Json.get(entry, "data_offsets", List.class));
            if (offsets.length != 2 || offsets[0] < 0 || offsets[1] < offsets[0] || offsets[1] > bytes.remaining()) {
                throw new BadFileException("safetensors file: the bytes of " + name + " are not within the file");
            }
            ByteBuffer data = bytes.slice();
            data.limit((int) offsets[1]).position((int) offsets[0]);
            TensorData.DType dtype = TensorData.DType.of(Json.get(entry, "dtype", String.class));
            tensors.put(name, new TensorData(dtype, longs(Json.get(entry, "shape", List.class)), data));
        }
    }

    static long[] longs(List<?> numbers) throws BadFileException {
        long[] longs = new long[numbers.size()];
        for (int i = 0; i < longs.length; i++) {
            if (!(numbers.get(i) instanceof Double) || (Double) numbers.get(i) % 1 != 0) {
                throw new BadFileException("JSON: " + numbers + ", expected whole numbers");
            }
            longs[i] = ((Double) numbers.get(i)).longValue();
        }
        return longs;
    }
}
