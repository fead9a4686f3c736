package qndeploy.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.fail;

import java.io.File;
import java.io.IOException;
import java.util.Arrays;
import java.util.Collections;
import java.util.Map;
import org.junit.Test;

public class JsonTest {
    private static Map<String, Object> parse(String text) throws BadFileException {
        return Json.parse(text.getBytes(java.nio.charset.StandardCharsets.UTF_8));
    }

    @Test
    public void readsEveryKindOfValue() throws BadFileException {
        Map<String, Object> object = parse(" {\"a\": [1, -2.5e3, true, null, \"\\u00e9\\n\u00e9\"], \"b\": {}, \"c\": []} ");
        assertEquals(Arrays.<Object>asList(1.0, -2500.0, true, null, "\u00e9\n\u00e9"), object.get("a"));
        assertEquals(Collections.emptyMap(), object.get("b"));
        assertEquals(Collections.emptyList(), object.get("c"));
    }

    @Test
    public void refusesWhatIsNoJson() {
        String deep = new String(new char[100]).replace("\0", "[");
        for (String bad :
                Arrays.asList(
                        "", "[]", "{", "{]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{,}", "{\"a\":[1,]}", "{\"a\":[1 2]}", "{\"a\":[1", "{\"a\":01}",
                        "{\"a\":+1}", "{\"a\":1.}", "{\"a\":nul}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12\"}", "{\"a\":\"", "{\"a\":\"\n\"}", "{a:1}",
                        "{\"a\":1,\"a\":2}", "{} x", "{\"a\":NaN}", "{\"a\":" + deep + "}", "{\"a\":\"\\")) {
            try {
                fail(bad + " was read as " + parse(bad));
            } catch (BadFileException expected) {
                assertEquals("JSON: ", expected.getMessage().substring(0, 6));
            }
        }
    }

    @Test
    public void quotesWhatItReads() throws BadFileException {
        String text = "a \"quoted\" \\ line\nand \u0001";
        assertEquals(text, parse("{\"a\": " + Json.quote(text) + "}").get("a"));
    }

    @Test
    public void namesTheMemberThatIsWrong() throws IOException {
        try {
            Json.get(parse("{\"bytes\": \"many\"}"), "bytes", Double.class);
            fail();
        } catch (BadFileException expected) {
            assertEquals("JSON: \"bytes\" is many, expected a Double", expected.getMessage());
        }
    }

    @Test
    public void readsEveryManifestOfPython() throws IOException {
        for (File model : Fixtures.files("models")) {
            if (model.isDirectory()) {
                assertEquals("qn-deploy build", Json.parse(Fixtures.read(new File(model, "manifest.json"))).get("format"));
            }
        }
    }
}
