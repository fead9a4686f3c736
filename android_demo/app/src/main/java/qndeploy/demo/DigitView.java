package qndeploy.demo;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Color;
import android.graphics.Paint;
import android.view.MotionEvent;
import android.view.View;
import java.util.ArrayList;
import java.util.List;

/** A field to draw a digit in with the finger. */
final class DigitView extends View {
    private final List<List<Float>> strokes = new ArrayList<>();
    private final Paint pen = new Paint(Paint.ANTI_ALIAS_FLAG);

    DigitView(Context context) {
        super(context);
        setBackgroundColor(Color.LTGRAY);
        pen.setStrokeCap(Paint.Cap.ROUND);
        pen.setStrokeWidth(12 * context.getResources().getDisplayMetrics().density);
    }

    /** The points of each stroke: x0, y0, x1, y1, ... */
    List<float[]> strokes() {
        List<float[]> arrays = new ArrayList<>();
        for (List<Float> stroke : strokes) {
            float[] points = new float[stroke.size()];
            for (int i = 0; i < points.length; i++) {
                points[i] = stroke.get(i);
            }
            arrays.add(points);
        }
        return arrays;
    }

    void clear() {
        strokes.clear();
        invalidate();
    }

    @Override
    public boolean onTouchEvent(MotionEvent event) {
        if (event.getActionMasked() == MotionEvent.ACTION_DOWN) {
            getParent().requestDisallowInterceptTouchEvent(true); // or the page would scroll
            strokes.add(new ArrayList<Float>());
        }
        if (!strokes.isEmpty()) {
            strokes.get(strokes.size() - 1).add(event.getX());
            strokes.get(strokes.size() - 1).add(event.getY());
        }
        invalidate();
        return true;
    }

    @Override
    protected void onDraw(Canvas canvas) {
        for (float[] points : strokes()) {
            for (int i = 0; i < points.length; i += 2) {
                int next = Math.min(i + 2, points.length - 2);
                canvas.drawLine(points[i], points[i + 1], points[next], points[next + 1], pen);
            }
        }
    }
}
