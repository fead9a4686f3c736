package qndeploy.demo;

import android.content.Context;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.util.AttributeSet;
import android.view.MotionEvent;
import android.view.View;
import java.util.ArrayList;
import java.util.List;

/** A field to draw a digit in with the finger. */
public final class DigitView extends View {
    private final List<float[]> lines = new ArrayList<>();
    private final Paint pen = new Paint(Paint.ANTI_ALIAS_FLAG);
    private float x, y; // where the last line ended

    public DigitView(Context context, AttributeSet attributes) {
        super(context, attributes);
        pen.setStrokeCap(Paint.Cap.ROUND);
        pen.setStrokeWidth(12 * context.getResources().getDisplayMetrics().density);
    }

    /** The lines drawn so far, {x0, y0, x1, y1} each. */
    List<float[]> lines() {
        return new ArrayList<>(lines);
    }

    void clear() {
        lines.clear();
        invalidate();
    }

    @Override
    public boolean onTouchEvent(MotionEvent event) {
        if (event.getActionMasked() == MotionEvent.ACTION_DOWN) {
            getParent().requestDisallowInterceptTouchEvent(true); // or the page would scroll
            x = event.getX();
            y = event.getY();
        }
        lines.add(new float[] {x, y, event.getX(), event.getY()});
        x = event.getX();
        y = event.getY();
        invalidate();
        return true;
    }

    @Override
    protected void onDraw(Canvas canvas) {
        for (float[] line : lines) {
            canvas.drawLines(line, pen);
        }
    }
}
