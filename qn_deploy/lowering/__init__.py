"""A Program becomes a graph that computes with int8, for each form that a runtime wants; rules and the integer reference."""
