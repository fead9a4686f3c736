"""Names in a written file by which it is read back: what follows a weight's own name."""

from __future__ import annotations

DECODED = "/int8"  # the int8 weight, decoded from its table or stored as it is
SCALE = "/scale"  # of an int8 weight; the operator that a layer is fused to goes on reading it
COLUMN = "/column"  # the scale of a weight that is multiplied in float
