package qndeploy;

import static qndeploy.BadFileException.check;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.HashMap;
import java.util.Map;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** A safetensors file: 8 bytes with the length of the header, the header in JSON, the tensors' bytes. */
final class Safetensors {
    final Map<String, TensorData> tensors = new HashMap<>();
    final JSONObject metadata;

    Safetensors(ByteBuffer file) throws BadFileException, JSONException {
        int size = file.remaining();
        long length = size < 8 ? -1 : file.slice().order(ByteOrder.LITTLE_ENDIAN).getLong();
        check(length >= 2 && length <= size - 8, "safetensors file of " + size + " bytes with a header of " + length);
        int begin = 8 + (int) length;
        JSONObject entries = Manifest.json(part(file, 8, begin));
        metadata = entries.has("__metadata__") ? entries.getJSONObject("__metadata__") : new JSONObject();
        entries.remove("__metadata__");
        for (String name : Manifest.names(entries)) {
            JSONObject entry = entries.getJSONObject(name);
            long[] offsets = longs(entry.getJSONArray("data_offsets"));
            boolean within = offsets.length == 2 && offsets[0] >= 0 && offsets[0] <= offsets[1] && offsets[1] <= size - begin;
            check(within, "safetensors file: the bytes of " + name + " are not within the file");
            ByteBuffer data = part(file, begin + (int) offsets[0], begin + (int) offsets[1]);
            tensors.put(name, new TensorData(TensorData.DType.of(entry.getString("dtype")), longs(entry.getJSONArray("shape")), data));
        }
    }

    private static ByteBuffer part(ByteBuffer file, int begin, int end) {
        ByteBuffer part = file.slice();
        part.limit(end);
        part.position(begin);
        return part.slice();
    }

    static long[] longs(JSONArray numbers) throws JSONException {
        long[] longs = new long[numbers.length()];
        for (int i = 0; i < longs.length; i++) {
            longs[i] = numbers.getLong(i);
        }
        return longs;
    }
}
