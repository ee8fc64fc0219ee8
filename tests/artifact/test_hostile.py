"""Files that were made to hurt: each is refused for its own reason, quickly and in little memory."""

import tracemalloc
from pathlib import Path

import pytest

from tersor.artifact.io import Reader
from tersor.errors import FormatError

FOLDER = Path(__file__).parents[1] / "hostile"
REASONS = {
    "alias_named_like_a_tensor": "twice",
    "alias_of_nothing": "the tensor of an alias is 5",
    "aliases_empty": "there, and empty",
    "aliases_out_of_order": "out of order",
    "attachment_bomb": "past the limit",
    "bytes_between": "1 bytes of payload are there, and the index lists 0",
    "center_not_needed": "center",
    "codes_of_integers": "not floating",
    "count_beyond_the_index": "has no end",
    "doubles_for_floats": "flags 0xc are not known",
    "doubles_for_scales": "flags 0xc are not known",
    "dtype_unknown": "dtype 31",
    "form_unknown": "form 7",
    "group_bomb": "past the limit",
    "head_alone": "cut off",
    "index_beyond_the_file": "cut off or damaged",
    "later_version": "version 2",
    "left_over": "left over",
    "memory_bomb": "past the limit",
    "method_of_nothing": "nothing is to be told",
    "method_unknown": "method",
    "name_beyond_the_index": "too early",
    "name_not_utf8": "not UTF-8",
    "name_shares_more": "shares more",
    "name_shares_too_much": "the shared start of a name is 9",
    "name_twice": "twice",
    "payload_beyond_the_file": "the index lists 16",
    "payload_missing": "payload_missing.tersor: a: ",
    "payload_sizes_overflow": "the index lists",
    "pickle": "not a .tersor file",
    "points_empty": "there, and empty",
    "points_bits": "flags 0x20 of a point",
    "points_bomb": "names of the points section take more than",
    "points_count_beyond": "at byte 21 of 21 has no end",
    "points_left_over": "1 bytes are left over in the points section",
    "points_nothing": "there, and empty",
    "points_scale_nan": "scale of a point is negative or not finite",
    "points_scale_negative": "scale of a point is negative or not finite",
    "points_twice": "is there twice",
    "points_zero_point": "a zero point is 4294967296",
    "section_bomb": "the size of a section is 4194305",
    "shape_overflows": "a dimension is",
    "structure_attribute": "change 200 of a module is not known",
    "structure_bias_of_nothing": "bias is 0",
    "structure_identity_of_two": "identity is 2",
    "structure_value": "bias is 2147483648",
    "too_many_dimensions": "the dimensions is 65",
    "too_many_weights": "too many weights",
    "unknown_feature": "features 0x10",
    "varint_too_long": "more than it needs",
    "varint_without_end": "has no end",
    "zip": "not a .tersor file",
}


def test_every_hostile_file_has_a_reason():
    assert sorted(REASONS) == sorted(path.stem for path in FOLDER.glob("*.tersor"))


@pytest.mark.parametrize("name", REASONS)
def test_a_hostile_file_is_refused(name):
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=REASONS[name]), Reader(FOLDER / f"{name}.tersor") as reader:
            reader.ledger()
            list(reader.items())
            assert (reader.points, reader.changes, reader.attachments) is None
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
