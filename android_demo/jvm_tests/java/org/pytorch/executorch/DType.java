package org.pytorch.executorch;

/** Stand-in, see Module. */
public enum DType {
    UINT8,
    INT8,
    INT32,
    FLOAT,
    INT64,
    DOUBLE
}
