package qndeploy.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.Collections;
import org.junit.Test;

public class DigitTest {
    @Test
    public void aStrokeFillsTheHeightInTheMiddle() throws BadFileException {
        TensorData image = Digit.image(Collections.singletonList(new float[] {300, 100, 300, 900}));
        assertEquals("F32 [1, 1, 8, 8]", image.form());
        for (int i = 0; i < 64; i++) {
            boolean inked = i % 8 == 3 || i % 8 == 4;
            assertTrue(i + ": " + image.value(i), inked ? image.value(i) > -1 : image.value(i) == -1);
        }
    }

    @Test
    public void sizeAndPlaceDoNotMatter() throws BadFileException {
        TensorData small = Digit.image(Collections.singletonList(new float[] {0, 0, 10, 0, 0, 20}));
        TensorData large = Digit.image(Collections.singletonList(new float[] {50, 70, 150, 70, 50, 270}));
        assertEquals(small.data(), large.data());
    }

    @Test
    public void aDotIsADigitToo() throws BadFileException {
        assertTrue(Digit.image(Collections.singletonList(new float[] {5, 5})).value(27) > -1);
    }
}
