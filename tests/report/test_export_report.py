from __future__ import annotations

import re
from typing import Any

LARGEST = 1 << 20  # bytes of a page


def test_export_draws_the_page_into_the_build(build: Any) -> None:
    text = (build.folder / "report.html").read_text()
    assert len(text.encode()) < LARGEST
    assert "Ranges of activations" in text and "Not run." in text  # of the model; the ladder is verify's
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
