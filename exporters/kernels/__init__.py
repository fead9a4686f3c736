"""C++ kernels that multiply with tables as they are: the layout, and how they are built."""
