package qndeploy;

import android.content.res.AssetFileDescriptor;
import android.content.res.AssetManager;
import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;

/** The assets of an app: those that the APK holds uncompressed (noCompress) are mapped where they lie, others are unpacked into memory. */
public final class AndroidAssets implements QnBuild.Assets {
    private final AssetManager assets;

    public AndroidAssets(AssetManager assets) {
        this.assets = assets;
    }

    @Override
    public ByteBuffer read(String path) throws IOException {
        try (AssetFileDescriptor asset = assets.openFd(path); FileInputStream apk = asset.createInputStream()) {
            return apk.getChannel().map(FileChannel.MapMode.READ_ONLY, asset.getStartOffset(), asset.getLength());
        } catch (FileNotFoundException compressed) { // or missing, which open() says
            return unpacked(path);
        }
    }

    private ByteBuffer unpacked(String path) throws IOException {
        ByteArrayOutputStream data = new ByteArrayOutputStream();
        byte[] part = new byte[1 << 14];
        try (InputStream in = assets.open(path)) {
            for (int size = in.read(part); size >= 0; size = in.read(part)) {
                data.write(part, 0, size);
            }
        } catch (FileNotFoundException missing) {
            throw new BadFileException(path + " is not among the app's assets");
        }
        ByteBuffer buffer = ByteBuffer.allocateDirect(data.size()); // onnxruntime reads programs from direct buffers
        buffer.put(data.toByteArray());
        buffer.flip();
        return buffer;
    }
}
