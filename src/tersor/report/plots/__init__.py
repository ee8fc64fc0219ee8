"""Measured numbers as pictures: data in, a matplotlib figure out (the extra ``plots``), without a display."""
