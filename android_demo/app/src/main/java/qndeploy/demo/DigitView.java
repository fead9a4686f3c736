package qndeploy.demo;

import android.content.Context;
import android.content.res.TypedArray;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.os.Bundle;
import android.os.Parcelable;
import android.util.AttributeSet;
import android.view.MotionEvent;
import android.view.View;
import java.util.ArrayList;
import java.util.List;

/** A square to draw a digit in with the finger. What is drawn outlives a rotation, as lines in units of the square's side. */
public final class DigitView extends View {
    private static final float PEN = 0.05f; // of the side
    private final List<float[]> lines = new ArrayList<>();
    private final Paint pen = new Paint(Paint.ANTI_ALIAS_FLAG);
    private Runnable changed = () -> {};
    private float x, y; // where the last line ended

    public DigitView(Context context, AttributeSet attributes) {
        super(context, attributes);
        TypedArray theme = context.obtainStyledAttributes(new int[] {android.R.attr.textColorPrimary});
        pen.setColor(theme.getColor(0, 0));
        pen.setAlpha(255); // or lines would be darker where they meet
        theme.recycle();
        pen.setStrokeCap(Paint.Cap.ROUND);
    }

    /** Called after every change of the drawing. */
    void onChange(Runnable listener) {
        changed = listener;
    }

    /** The lines drawn so far, {x0, y0, x1, y1} each. */
    List<float[]> lines() {
        return new ArrayList<>(lines);
    }

    void clear() {
        lines.clear();
        change();
    }

    private void change() {
        invalidate();
        changed.run();
    }

    @Override
    protected void onMeasure(int width, int height) {
        int side = Math.min(getDefaultSize(getSuggestedMinimumWidth(), width), getSuggestedMinimumWidth());
        setMeasuredDimension(side, side);
    }

    @Override
    public boolean onTouchEvent(MotionEvent event) {
        if (event.getActionMasked() == MotionEvent.ACTION_DOWN) {
            getParent().requestDisallowInterceptTouchEvent(true); // or the page would scroll
            x = event.getX() / getWidth();
            y = event.getY() / getHeight();
        }
        for (int i = 0; i < event.getHistorySize(); i++) { // positions between two events
            draw(event.getHistoricalX(i), event.getHistoricalY(i));
        }
        draw(event.getX(), event.getY());
        if (event.getActionMasked() == MotionEvent.ACTION_UP) {
            performClick();
        }
        change();
        return true;
    }

    private void draw(float toX, float toY) {
        lines.add(new float[] {x, y, x = toX / getWidth(), y = toY / getHeight()});
    }

    @Override
    protected void onDraw(Canvas canvas) {
        pen.setStrokeWidth(PEN * getWidth());
        for (float[] line : lines) {
            canvas.drawLine(line[0] * getWidth(), line[1] * getHeight(), line[2] * getWidth(), line[3] * getHeight(), pen);
        }
    }

    @Override
    protected Parcelable onSaveInstanceState() {
        float[] flat = new float[4 * lines.size()];
        for (int i = 0; i < flat.length; i++) {
            flat[i] = lines.get(i / 4)[i % 4];
        }
        Bundle state = new Bundle();
        state.putParcelable("view", super.onSaveInstanceState());
        state.putFloatArray("lines", flat);
        return state;
    }

    @Override
    protected void onRestoreInstanceState(Parcelable parcelable) {
        Bundle state = (Bundle) parcelable;
        super.onRestoreInstanceState(state.getParcelable("view"));
        float[] flat = state.getFloatArray("lines");
        lines.clear();
        for (int i = 0; i < flat.length; i += 4) {
            lines.add(new float[] {flat[i], flat[i + 1], flat[i + 2], flat[i + 3]});
        }
        change();
    }
}
