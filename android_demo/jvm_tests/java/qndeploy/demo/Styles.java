package qndeploy.demo;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Ten ways to write the ten digits, as strokes of a finger on a square pad of side 1; y grows downwards. Nothing of it is the app's. */
public final class Styles {
    public static final String[] NAMES = {
        "upright", "slanted right", "slanted left", "narrow", "wide", "small in a corner", "continental", "round", "shaky", "angular",
    };

    private Styles() {}

    /** The strokes of a digit, each a row of points {x, y}. */
    public static List<float[][]> strokes(int style, int digit) {
        float[][][] written = style == 6 ? continental(digit) : style == 7 ? round(digit) : style == 9 ? angular(digit) : plain(digit);
        List<float[][]> strokes = new ArrayList<>();
        for (float[][] stroke : written) {
            float[][] moved = new float[stroke.length][];
            for (int i = 0; i < moved.length; i++) {
                moved[i] = moved(style, digit, stroke[i][0], stroke[i][1]);
            }
            strokes.add(moved);
        }
        return strokes;
    }

    /** The same as lines {x0, y0, x1, y1}. */
    public static List<float[]> lines(int style, int digit) {
        List<float[]> lines = new ArrayList<>();
        for (float[][] stroke : strokes(style, digit)) {
            for (int i = 1; i < stroke.length; i++) {
                lines.add(new float[] {stroke[i - 1][0], stroke[i - 1][1], stroke[i][0], stroke[i][1]});
            }
        }
        return lines;
    }

    private static float[] moved(int style, int digit, float x, float y) {
        float dx = x - 0.5f;
        float dy = y - 0.5f;
        switch (style) {
            case 1: return at(0.5 + dx - 0.3 * dy, y);
            case 2: return at(0.5 + dx + 0.2 * dy, y);
            case 3: return at(0.5 + 0.7 * dx, y);
            case 4: return at(0.5 + 1.25 * dx, 0.5 + 0.8 * dy);
            case 5: return at(0.75 + 0.35 * dx, 0.7 + 0.35 * dy);
            case 8: return at(x + 0.02 * Math.sin(17 * y + digit), y + 0.02 * Math.sin(19 * x + 2 * digit));
            default: return at(x, y);
        }
    }

    /** As learned at school. */
    private static float[][][] plain(int digit) {
        switch (digit) {
            case 0: return all(arc(.5, .5, .24, .36, -90, 270));
            case 1: return all(line(.36, .3, .54, .14, .54, .86));
            case 2: return all(join(arc(.5, .34, .22, .2, -170, 30), line(.3, .84, .76, .84)));
            case 3: return all(join(arc(.48, .32, .2, .18, -150, 80), arc(.48, .67, .24, .19, -80, 150)));
            case 4: return all(line(.56, .14, .24, .62, .78, .62), line(.62, .38, .62, .86));
            case 5: return all(join(line(.34, .14, .32, .44), arc(.48, .63, .23, .22, -130, 140)), line(.34, .14, .7, .14));
            case 6: return all(join(line(.62, .14, .42, .34), arc(.5, .65, .22, .21, -170, 190)));
            case 7: return all(line(.26, .16, .74, .16, .44, .86));
            case 8: return all(eight());
            default: return all(join(arc(.5, .34, .2, .2, 0, -360), line(.7, .34, .66, .86)));
        }
    }

    /** 1 with a base, a crossed 7, an open 4, a looped 2, a curved 9. */
    private static float[][][] continental(int digit) {
        switch (digit) {
            case 1: return all(line(.34, .32, .54, .14, .54, .86), line(.36, .86, .72, .86));
            case 2: return all(join(arc(.5, .33, .2, .19, 180, 390), arc(.38, .76, .09, .09, -30, -340), line(.76, .84)));
            case 4: return all(line(.36, .16, .28, .56, .76, .54), line(.62, .3, .6, .86));
            case 7: return all(line(.26, .18, .72, .16, .46, .86), line(.36, .5, .7, .5));
            case 9: return all(join(arc(.5, .34, .2, .2, 0, -360), arc(.4, .5, .3, .36, -20, 110)));
            default: return plain(digit);
        }
    }

    /** In one go, all curves. */
    private static float[][][] round(int digit) {
        switch (digit) {
            case 0: return all(arc(.5, .5, .3, .34, -60, 310));
            case 1: return all(line(.52, .14, .5, .5, .5, .86));
            case 3: return all(join(arc(.46, .32, .2, .18, -170, 60), arc(.46, .67, .24, .19, -60, 170)));
            case 5: return all(join(line(.72, .15, .38, .16, .34, .46), arc(.5, .64, .22, .21, -140, 150)));
            case 6: return all(join(arc(.72, .56, .44, .42, -110, -180), arc(.48, .66, .2, .19, 180, -160)));
            case 8: return all(arc(.5, .32, .17, .17, 90, 450), arc(.5, .68, .2, .19, -90, 270));
            case 9: return all(join(arc(.5, .33, .19, .19, -20, -360), arc(.3, .45, .4, .4, -10, 70)));
            default: return plain(digit);
        }
    }

    /** Straight lines only. */
    private static float[][][] angular(int digit) {
        switch (digit) {
            case 0: return all(line(.4, .14, .62, .14, .74, .4, .72, .7, .58, .86, .38, .86, .26, .62, .28, .32, .4, .14));
            case 2: return all(line(.28, .28, .42, .14, .6, .14, .72, .3, .66, .48, .28, .86, .76, .86));
            case 3: return all(line(.28, .2, .5, .14, .68, .26, .62, .42, .44, .48, .66, .56, .72, .72, .54, .86, .28, .8));
            case 5: return all(line(.72, .14, .34, .14, .32, .46, .58, .42, .72, .58, .68, .76, .5, .86, .28, .8));
            case 6: return all(line(.6, .14, .38, .38, .28, .64, .38, .84, .6, .84, .72, .68, .62, .52, .4, .52, .3, .62));
            case 8: return all(line(.66, .26, .5, .14, .34, .26, .4, .42, .64, .6, .68, .76, .5, .86, .32, .76, .38, .58, .62, .4, .66, .26));
            case 9: return all(line(.7, .34, .58, .5, .38, .5, .3, .32, .42, .16, .6, .16, .7, .34, .66, .6, .56, .86));
            default: return plain(digit);
        }
    }

    /** From the top, in one line: an S, and back up. */
    private static float[][] eight() {
        float[][] points = new float[61][];
        for (int i = 0; i < points.length; i++) {
            double turn = 2 * Math.PI * i / (points.length - 1);
            points[i] = at(.5 - .2 * Math.sin(2 * turn), .5 - .36 * Math.cos(turn));
        }
        return points;
    }

    /** Degrees from the right, clockwise. */
    private static float[][] arc(double x, double y, double width, double height, double from, double to) {
        float[][] points = new float[25][];
        for (int i = 0; i < points.length; i++) {
            double angle = Math.toRadians(from + (to - from) * i / (points.length - 1));
            points[i] = at(x + width * Math.cos(angle), y + height * Math.sin(angle));
        }
        return points;
    }

    private static float[][] line(double... coordinates) {
        float[][] points = new float[coordinates.length / 2][];
        for (int i = 0; i < points.length; i++) {
            points[i] = at(coordinates[2 * i], coordinates[2 * i + 1]);
        }
        return points;
    }

    private static float[][] join(float[][]... parts) {
        List<float[]> points = new ArrayList<>();
        for (float[][] part : parts) {
            points.addAll(Arrays.asList(part));
        }
        return points.toArray(new float[0][]);
    }

    private static float[][][] all(float[][]... strokes) {
        return strokes;
    }

    private static float[] at(double x, double y) {
        return new float[] {(float) x, (float) y};
    }
}
