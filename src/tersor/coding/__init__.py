"""Integer arrays to bytes and back: NumPy and Numba, no torch."""
