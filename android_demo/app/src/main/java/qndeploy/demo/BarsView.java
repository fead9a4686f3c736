package qndeploy.demo;

import android.content.Context;
import android.content.res.TypedArray;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.util.AttributeSet;
import android.view.View;

/** A bar for each digit, as long as the model is sure of it. What it shows in pictures, its content description says in words. */
public final class BarsView extends View {
    private static final float TEXT = 0.75f; // of a row
    private static final float BAR = 0.5f;
    private final Paint text = new Paint(Paint.ANTI_ALIAS_FLAG);
    private final Paint bar = new Paint(Paint.ANTI_ALIAS_FLAG);
    private double[] shares = new double[10];

    public BarsView(Context context, AttributeSet attributes) {
        super(context, attributes);
        TypedArray theme = context.obtainStyledAttributes(new int[] {android.R.attr.textColorPrimary, android.R.attr.colorAccent});
        text.setColor(theme.getColor(0, 0));
        bar.setColor(theme.getColor(1, 0));
        theme.recycle();
        text.setTextAlign(Paint.Align.CENTER);
    }

    void show(double[] digits) {
        shares = digits.clone();
        invalidate();
    }

    @Override
    protected void onDraw(Canvas canvas) {
        float row = (float) getHeight() / shares.length;
        boolean mirrored = getLayoutDirection() == LAYOUT_DIRECTION_RTL;
        text.setTextSize(TEXT * row);
        bar.setStrokeWidth(BAR * row);
        float start = 1.5f * row;
        for (int digit = 0; digit < shares.length; digit++) {
            float middle = (digit + 0.5f) * row;
            float end = start + (float) shares[digit] * (getWidth() - start - row);
            canvas.drawText(String.valueOf(digit), mirrored ? getWidth() - row / 2 : row / 2, middle + 0.35f * text.getTextSize(), text);
            canvas.drawLine(mirrored ? getWidth() - start : start, middle, mirrored ? getWidth() - end : end, middle, bar);
        }
    }
}
