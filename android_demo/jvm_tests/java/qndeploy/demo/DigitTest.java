package qndeploy.demo;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.junit.Test;
import qndeploy.Fixtures;
import qndeploy.QnBuild;
import qndeploy.QnModel;
import qndeploy.TensorData;

public class DigitTest {
    private static final int RIGHT = 95; // of a hundred

    /** A hundred drawings, each on every program of the demo's model: the digit that was drawn. */
    @Test
    public void drawnDigitsAreReadRight() throws Exception {
        QnBuild digits = QnBuild.of(Fixtures::map, "digits", Fixtures.scratch());
        assertTrue(Digit.suits(digits));
        for (String file : digits.programs) {
            List<String> wrong = new ArrayList<>();
            try (QnModel model = QnModel.open(digits, file)) {
                for (int style = 0; style < Styles.NAMES.length; style++) {
                    for (int digit = 0; digit < 10; digit++) {
                        TensorData logits = model.run(Digit.image(Styles.lines(style, digit))).get(0);
                        int read = logits.argmax(0, logits.count());
                        if (read != digit) {
                            wrong.add(digit + " " + Styles.NAMES[style] + " read as " + read);
                        }
                    }
                }
            }
            System.out.println(file + ": " + (100 - wrong.size()) + " of 100 drawn digits are right; " + wrong);
            assertTrue(file + ": " + wrong, wrong.size() <= 100 - RIGHT);
        }
    }

    private static List<float[]> line(float... coordinates) {
        return Collections.singletonList(coordinates);
    }

    @Test
    public void aLineFillsTheHeightInTheMiddle() throws Exception {
        TensorData image = Digit.image(line(.3f, .1f, .3f, .9f));
        assertEquals("F32 [1, 1, 8, 8]", image.toString());
        for (int i = 0; i < 64; i++) {
            boolean inked = i % 8 >= 2 && i % 8 <= 5;
            assertTrue(i + ": " + image.value(i), inked ? image.value(i) > -1 : image.value(i) == -1);
        }
    }

    @Test
    public void sizeAndPlaceDoNotMatter() throws Exception {
        TensorData small = Digit.image(Arrays.asList(new float[] {0, 0, .25f, 0}, new float[] {.25f, 0, 0, .5f}));
        TensorData large = Digit.image(Arrays.asList(new float[] {.5f, 0, 1, 0}, new float[] {1, 0, .5f, 1}));
        assertEquals(small.data(), large.data());
    }

    /** A line to the left of an upright one and one that leans as far as it: the same picture. */
    @Test
    public void slantDoesNotMatter() throws Exception {
        TensorData upright = Digit.image(line(.5f, .1f, .5f, .9f));
        TensorData leaning = Digit.image(line(.7f, .1f, .4f, .9f));
        for (int i = 0; i < 64; i++) {
            assertEquals(upright.value(i), leaning.value(i), 0.5);
        }
    }

    @Test
    public void everyDrawingHasTheSameInk() throws Exception {
        for (int style = 0; style < Styles.NAMES.length; style++) {
            for (int digit = 0; digit < 10; digit++) {
                TensorData image = Digit.image(Styles.lines(style, digit));
                double ink = 0;
                for (int i = 0; i < 64; i++) {
                    ink += 8 * (image.value(i) + 1);
                }
                assertEquals(320, ink, 8); // pixels of one distance come together
            }
        }
    }

    @Test
    public void whatIsNoDigitIsNone() throws Exception {
        assertNull(Digit.image(Collections.emptyList()));
        assertNull(Digit.image(line(.5f, .5f, .5f, .5f)));
        assertNull(Digit.image(line(.5f, .5f, .52f, .51f)));
        List<float[]> full = new ArrayList<>();
        for (int i = 0; i <= 30; i++) {
            full.add(new float[] {0, i / 30f, 1, i / 30f});
        }
        assertNull(Digit.image(full));
    }
}
