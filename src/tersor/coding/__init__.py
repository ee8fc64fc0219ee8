"""Integer arrays and raw values to bytes and back: NumPy and Numba, no torch."""

from tersor.coding.codec import METHODS, decode, encode, table_bytes
from tersor.coding.planes import VALUE_METHODS, decode_values, encode_values

__all__ = [
    "METHODS",
    "VALUE_METHODS",
    "decode",
    "decode_values",
    "encode",
    "encode_values",
    "table_bytes",
]
