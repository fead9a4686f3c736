package qndeploy.core;

import java.nio.charset.Charset;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Reads JSON: objects become maps in the file's order, arrays lists, numbers Doubles. Android's org.json is no plain Java. */
public final class Json {
    private static final int MAX_DEPTH = 64;
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** The object that a whole file holds. */
    public static Map<String, Object> parse(byte[] utf8) throws BadFileException {
        Json json = new Json(new String(utf8, Charset.forName("UTF-8")));
        Object value = json.value(0);
        json.check(json.peek() == 0 && value instanceof Map, "one object and nothing else");
        return cast(value);
    }

    /** A member of the given type: Map, List, String, Double or Boolean. */
    public static <T> T get(Map<String, Object> object, String key, Class<T> type) throws BadFileException {
        if (!type.isInstance(object.get(key))) {
            throw new BadFileException("JSON: \"" + key + "\" is " + object.get(key) + ", expected a " + type.getSimpleName());
        }
        return type.cast(object.get(key));
    }

    /** A member that is an object. */
    public static Map<String, Object> object(Map<String, Object> object, String key) throws BadFileException {
        return cast(get(object, key, Map.class));
    }

    /** A string as JSON writes it. */
    public static String quote(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            quoted.append(c == '"' || c == '\\' ? "\\" + c : c < ' ' ? String.format("\\u%04x", (int) c) : String.valueOf(c));
        }
        return quoted.append('"').toString();
    }

    @SuppressWarnings("unchecked") // keys are strings, as this class made the map
    static Map<String, Object> cast(Object map) {
        return (Map<String, Object>) map;
    }

    private Object value(int depth) throws BadFileException {
        check(depth <= MAX_DEPTH, "no more than " + MAX_DEPTH + " levels");
        char c = peek();
        if (c == '{') {
            Map<String, Object> members = new LinkedHashMap<>();
            for (at++; more(members.size(), '}'); ) {
                String key = string();
                take(':');
                check(!members.containsKey(key), "one member named " + key);
                members.put(key, value(depth + 1));
            }
            return members;
        }
        if (c == '[') {
            List<Object> elements = new ArrayList<>();
            for (at++; more(elements.size(), ']'); ) {
                elements.add(value(depth + 1));
            }
            return elements;
        }
        return c == '"' ? string() : scalar();
    }

    private String string() throws BadFileException {
        StringBuilder string = new StringBuilder();
        for (take('"'); at < text.length() && text.charAt(at) != '"'; at++) {
            check(text.charAt(at) >= ' ', "no control character in a string");
            string.append(text.charAt(at) == '\\' ? escape() : text.charAt(at));
        }
        take('"');
        return string.toString();
    }

    private char escape() throws BadFileException {
        int kind = ++at < text.length() ? "\"\\/bfnrtu".indexOf(text.charAt(at)) : -1;
        check(kind >= 0, "an escape");
        if (kind < 8) {
            return "\"\\/\b\f\n\r\t".charAt(kind);
        }
        String digits = text.substring(at + 1, Math.min(at + 5, text.length()));
        check(digits.matches("[0-9a-fA-F]{4}"), "four hex digits");
        at += 4;
        return (char) Integer.parseInt(digits, 16);
    }

    private Object scalar() throws BadFileException {
        int begin = at;
        while (at < text.length() && ",]} \t\r\n".indexOf(text.charAt(at)) < 0) {
            at++;
        }
        String word = text.substring(begin, at);
        if (word.equals("null") || word.equals("true") || word.equals("false")) {
            return word.equals("null") ? null : Boolean.valueOf(word);
        }
        check(word.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?"), "a value");
        return Double.valueOf(word);
    }

    /** The next character that is no space, not taken; 0 at the end. */
    private char peek() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        return at < text.length() ? text.charAt(at) : 0;
    }

    /** Takes the end of a list, or the comma before its next entry. */
    private boolean more(int count, char end) throws BadFileException {
        if (peek() == end) {
            at++;
            return false;
        }
        if (count > 0) {
            take(',');
        }
        return true;
    }

    private void take(char c) throws BadFileException {
        check(peek() == c, String.valueOf(c));
        at++;
    }

    private void check(boolean holds, String expected) throws BadFileException {
        if (!holds) {
            throw new BadFileException("JSON: expected " + expected + " at character " + at + " of " + text.length());
        }
    }
}
