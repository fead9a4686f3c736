package qndeploy;

import java.io.IOException;

/** A file that can't be used; the message says what was found and what was expected. */
public final class BadFileException extends IOException {
    private static final long serialVersionUID = 1;

    public BadFileException(String message) {
        super(message);
    }

    static void check(boolean holds, String otherwise) throws BadFileException {
        if (!holds) {
            throw new BadFileException(otherwise);
        }
    }
}
