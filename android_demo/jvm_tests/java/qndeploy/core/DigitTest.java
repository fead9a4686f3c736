package qndeploy.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.Arrays;
import java.util.Collections;
import org.junit.Test;

public class DigitTest {
    @Test
    public void aLineFillsTheHeightInTheMiddle() throws BadFileException {
        TensorData image = Digit.image(Collections.singletonList(new float[] {300, 100, 300, 900}));
        assertEquals("F32 [1, 1, 8, 8]", image.toString());
        for (int i = 0; i < 64; i++) {
            boolean inked = i % 8 == 3 || i % 8 == 4;
            assertTrue(i + ": " + image.value(i), inked ? image.value(i) > -1 : image.value(i) == -1);
        }
    }

    @Test
    public void sizeAndPlaceDoNotMatter() throws BadFileException {
        TensorData small = Digit.image(Arrays.asList(new float[] {0, 0, 10, 0}, new float[] {10, 0, 0, 20}));
        TensorData large = Digit.image(Arrays.asList(new float[] {50, 70, 150, 70}, new float[] {150, 70, 50, 270}));
        assertEquals(small.data(), large.data());
    }

    @Test
    public void aLineEndsWhereItEnds() throws BadFileException {
        TensorData image = Digit.image(Arrays.asList(new float[] {0, 0, 0, 80}, new float[] {0, 40, 20, 40}));
        assertTrue(image.value(8 * 3 + 4) > -1); // the short one, right of the long one, which fills the height in the middle
        for (int row = 0; row < 8; row++) {
            assertEquals(-1, image.value(8 * row + 7), 0);
        }
    }

    @Test
    public void aDotIsADigitToo() throws BadFileException {
        assertTrue(Digit.image(Collections.singletonList(new float[] {5, 5, 5, 5})).value(27) > -1);
    }
}
