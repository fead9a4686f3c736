package qndeploy.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import org.junit.Test;

public class AgreementTest {
    /** Pairs of tensors with what qn_deploy.verify says of them. */
    @Test
    public void agreesWithPython() throws IOException {
        Map<String, TensorData> tensors = new Safetensors(Fixtures.read("agreement.safetensors")).tensors;
        List<?> cases = Json.get(Json.parse(Fixtures.read("agreement.json")), "cases", List.class);
        assertTrue(cases.size() > 20);
        for (int i = 0; i < cases.size(); i++) {
            Map<String, Object> expected = Json.cast(cases.get(i));
            Agreement found = new Agreement(tensors.get("found/" + i), tensors.get("expected/" + i), (Double) expected.get("step"));
            assertEquals("case " + i, expected.get("said"), found.toString());
            assertEquals("case " + i, expected.get("identical"), found.identical);
            assertEquals("case " + i, (Double) expected.get("top1"), found.top1, 1e-12);
        }
    }

    @Test
    public void percentilesAreByNearestRank() {
        assertEquals(3, Runner.percentile(new long[] {5, 1, 4, 2, 3}, 50));
        assertEquals(5, Runner.percentile(new long[] {5, 1, 4, 2, 3}, 90));
        assertEquals(9, Runner.percentile(new long[] {10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 90));
        assertEquals(7, Runner.percentile(new long[] {7}, 50));
    }
}
