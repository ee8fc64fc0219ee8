"""Writes the hostile files beside it: each has a valid checksum and one thing in it that must not be.

python tests/hostile/make.py
"""

from pathlib import Path
from zlib import crc32

from tersor.artifact.container import HEAD, print_tail
from tersor.coding.framing import write_varint

HERE = Path(__file__).parent
EMPTY = b"\x02\x01\x00\x00\x00\x00"  # float32, shape (0,), as float16, method 0, 0 bytes
HUGE = b"\x42\x02\x80\x80\x40\x80\x80\x40\x00\x01\x00\x00\x00\x00"  # a constant of 2^40 weights


def tensors(*entries: bytes) -> bytes:
    return b"\x00" + bytes([len(entries)]) + b"".join(entries)


def named(name: bytes, entry: bytes = EMPTY, shared: int = 0) -> bytes:
    return bytes([shared, len(name)]) + name + entry


INDEXES = {
    "unknown_feature": b"\x10\x00",
    "varint_too_long": b"\x00\x81\x00" + named(b"a"),
    "varint_without_end": b"\x00" + b"\xff" * 12,
    "count_beyond_the_index": b"\x00\xff\xff\xff\xff\x7f",
    "name_beyond_the_index": tensors(b"\x00\xff\xff\x03a"),
    "name_not_utf8": tensors(named(b"\xff")),
    "name_twice": tensors(named(b"a"), named(b"", shared=1)),
    "name_shares_more": tensors(named(b"aa"), named(b"ab")),
    "name_shares_too_much": tensors(named(b"a"), named(b"b", shared=9)),
    "dtype_unknown": tensors(named(b"a", b"\x1f" + EMPTY[1:])),
    "form_unknown": tensors(named(b"a", b"\xe2" + EMPTY[1:])),
    "codes_of_integers": tensors(named(b"a", b"\x4c" + HUGE[1:])),
    "doubles_for_floats": tensors(named(b"a", b"\x42\x01\x04\x0c\x02\x00\x00\x00\x00")),
    "doubles_for_scales": tensors(named(b"a", b"\x63\x01\x04\x0c\x00\x02\x00\x00\x00\x00")),
    "too_many_dimensions": tensors(named(b"a", b"\x02\x41" + b"\x01" * 65 + EMPTY[2:])),
    "too_many_weights": tensors(named(b"a", b"\x02\x03" + b"\xff\xff\xff\x7f" * 3 + EMPTY[2:])),
    "shape_overflows": tensors(named(b"a", b"\x02\x03\x00" + b"\xff" * 6 + b"\x7f" + b"\x02" + EMPTY[2:])),
    "memory_bomb": tensors(named(b"a", HUGE)),
    "group_bomb": tensors(named(b"a", b"\x42\x02\x80\x80\x80\x80\x40\x00\x01\x00\x01\x00\x00\x00\x00")),
    "payload_beyond_the_file": tensors(named(b"a", b"\x02\x01\x04\x02\x00\x10")),
    "payload_missing": tensors(named(b"a", b"\x02\x01\x04\x02\x00\x00")),
    "payload_sizes_overflow": tensors(
        *(named(bytes([97 + at]), b"\x02\x01\x00\x00\x00" + b"\xff" * 6 + b"\x3f") for at in range(5))
    )
    + bytes(20),
    "method_unknown": tensors(named(b"a", b"\x02\x01\x04\x02\xc8\x01\x00")),
    "method_of_nothing": tensors(named(b"a", b"\x02\x01\x00\x00\x01\x00")),
    "alias_of_nothing": b"\x01\x01" + named(b"a") + b"\x01\x00\x01b\x05",
    "alias_named_like_a_tensor": b"\x01\x01" + named(b"a") + b"\x01\x00\x01a\x00",
    "aliases_out_of_order": b"\x01\x01" + named(b"a") + b"\x02\x00\x01c\x00\x00\x01b\x00",
    "aliases_empty": b"\x01\x00\x00",
    "attachment_bomb": b"\x08\x00\x01\x00\x01a\x80\x80\x80\x80\x80\x20\x00\x00",
    "points_empty": b"\x02\x00\x00\x00\x00",
    "section_bomb": b"\x02\x00\x81\x80\x80\x02\x00\x00",
    "center_not_needed": tensors(named(b"a", b"\x42\x01\x00\x10\x02\x00\x00\x00\x00\x00")),
    "left_over": b"\x00\x00\x00",
}


POINT = b"\x00\x01a\x00\x04conv\x00\x07\x00\x00\x80\x3f\x00"  # a, conv, 0: 8 bits, scale 1, zero point 0
LONG = b"\x00\xff\xff\x03" + b"a" * 65535 + POINT[3:]  # a path as long as can be
AGAIN = b"\xff\xff\x03\x00" + b"\x04\x00%c\x07" + POINT[-5:]  # the same path and operation, another call
POINTS = {
    "points_nothing": b"\x00",
    "points_count_beyond": b"\xff\xff\xff\xff\x7f" + POINT,
    "points_left_over": b"\x01" + POINT + b"\x00",
    "points_bits": b"\x01" + POINT.replace(b"\x07", b"\x20"),
    "points_scale_nan": b"\x01" + POINT.replace(b"\x80\x3f", b"\xc0\x7f"),
    "points_scale_negative": b"\x01" + POINT.replace(b"\x80\x3f", b"\x80\xbf"),
    "points_zero_point": b"\x01" + POINT[:-1] + b"\x80\x80\x80\x80\x10",
    "points_twice": b"\x02" + POINT + b"\x01\x00\x04\x00\x00\x07" + POINT[-5:],
    "points_bomb": b"\x7f" + LONG + b"".join(AGAIN % bytes([at]) for at in range(1, 127)),
}
CHANGES = {
    "structure_attribute": b"\x01\x00\x01a\xc8\x01",
    "structure_identity_of_two": b"\x01\x00\x01a\x00\x02",
    "structure_bias_of_nothing": b"\x01\x00\x01a\x01\x00",
    "structure_value": b"\x01\x00\x01a\x01\x80\x80\x80\x80\x08",
}


def file(index: bytes, payload: bytes = b"") -> bytes:
    return HEAD + payload + index + print_tail(index, crc32(HEAD + payload))


def section(flag: int, content: bytes) -> bytes:
    size = write_varint(len(content))
    return file(bytes([flag, 0]) + size + b"\x00" + size, content)


FILES = {name: file(index) for name, index in INDEXES.items()}
FILES |= {name: section(2, content) for name, content in POINTS.items()}
FILES |= {name: section(4, content) for name, content in CHANGES.items()}
FILES |= {
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtin\x94.",
    "zip": b"PK\x03\x04" + bytes(60),
    "later_version": HEAD[:-1] + b"\x02" + file(b"\x00\x00")[5:],
    "head_alone": HEAD,
    "index_beyond_the_file": HEAD + b"\x00\x00" + b"\xff\xff\xff\xff" + bytes(4),
    "bytes_between": HEAD + b"\x00" + b"\x00\x00" + print_tail(b"\x00\x00", crc32(HEAD + b"\x00")),
}

if __name__ == "__main__":
    for name, data in FILES.items():
        (HERE / f"{name}.tersor").write_bytes(data)
