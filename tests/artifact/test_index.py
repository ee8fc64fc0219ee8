import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.artifact.container import (
    DTYPES,
    MAX_SECTION_BYTES,
    STORED,
    TINY_BYTES,
    Blob,
    Entry,
    Index,
    Part,
    level_dtype,
    part_names,
)
from tersor.artifact.index import parse_index, print_index
from tersor.errors import FormatError
from tersor.tensor.groups import PER_TENSOR, Granularity

SIZES = st.one_of(st.integers(0, 3), st.integers(0, 200_000))
PARTS = st.builds(Part, st.integers(0, 255), SIZES)
BLOBS = st.builds(Blob, st.integers(1, 2**40), PARTS)
SECTIONS = st.none() | st.builds(Blob, st.integers(1, MAX_SECTION_BYTES), PARTS)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def entries(draw, name):
    form = draw(st.sampled_from(["raw", "masked", "codebook", "affine"]))
    shape = tuple(draw(st.lists(st.integers(0, 200), max_size=4)))
    shifted = form == "affine" and draw(st.booleans())
    parts = tuple(draw(PARTS) for _ in part_names(form, shifted))
    if form in ("raw", "masked"):
        dtype = draw(st.sampled_from(DTYPES))
        return Entry(name, form, dtype, shape, draw(st.sampled_from(STORED[dtype])), parts)
    kind = draw(st.sampled_from(["tensor", "channel", "block"] if shape else ["tensor"]))
    axis = 0 if kind == "tensor" else draw(st.integers(0, len(shape) - 1))
    granularity = Granularity(kind, axis, draw(st.integers(1, 500)) if kind == "block" else 0)
    levels = draw(st.integers(1, 2**16 if form == "codebook" else 2**20))
    dtype = draw(st.sampled_from(DTYPES[:4]))
    return Entry(
        name, form, dtype, shape,
        draw(st.sampled_from(STORED[level_dtype(form, dtype)])), parts, granularity, levels,
        0 if form == "codebook" else draw(st.integers(-(2**31), 2**31 - levels)),
        draw(st.none() | st.integers(0, levels - 1)), shifted,
    )  # fmt: skip


@st.composite
def indices(draw):
    names = draw(st.lists(NAMES, unique=True, max_size=8))
    cut = draw(st.integers(0, len(names)))
    stored, more = names[:cut], names[cut:] if cut else []
    aliases = {name: draw(st.sampled_from(stored)) for name in sorted(more, key=str.encode)}
    sections = [draw(SECTIONS), draw(SECTIONS)]
    attached = draw(st.lists(NAMES, unique=True, max_size=3))
    attachments = {name: draw(BLOBS) for name in sorted(attached, key=str.encode)}
    index = Index(tuple(draw(entries(name)) for name in stored), aliases, *sections, attachments)
    large = sum(index.chunks.values()) > TINY_BYTES
    checks = tuple(draw(st.integers(0, 2**32 - 1)) for _ in index.chunks) if large else ()
    return Index(index.tensors, aliases, *sections, attachments, checks)


@settings(max_examples=150, deadline=None)
@given(indices())
def test_what_is_printed_is_parsed(index):
    again = parse_index(print_index(index))
    assert again == index
    assert list(again.aliases) == list(index.aliases)


@settings(max_examples=150, deadline=None)
@given(indices(), st.data())
def test_an_index_has_one_encoding(index, data):
    """Any change is refused, or is the one encoding of another index."""
    original = print_index(index)
    at = data.draw(st.integers(0, len(original) - 1))
    kind = data.draw(st.sampled_from(["change", "insert", "delete"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    changed = original[:at] + (b"" if kind == "delete" else byte) + original[at + (kind != "insert") :]
    try:
        other = parse_index(changed)
    except FormatError:
        return
    assert print_index(other) == changed
    assert (other == index) == (changed == original)


def entry(name="w", size=0, **fields):
    return Entry(name, "raw", "float32", (0,), "float16", (Part(0, size),), PER_TENSOR, **fields)


def test_names_share_their_start():
    data = print_index(Index((entry("features.0.weight"), entry("features.0.bias"))))
    assert data.count(b"features") == 1
    assert b"\x0b\x04bias" in data


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "flags: .* has no end"),
        (b"\x10\x00", "features 0x10"),
        (b"\x80\x00", "flags: .* more than it needs"),
        (b"\x00\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "number of tensors: .* has no end"),
        (b"\x00\x00\x00", "left over"),
        (b"\x01\x00\x00", "aliases is there, and empty"),
        (b"\x08\x00\x00", "attachments is there, and empty"),
        (b"\x02\x00\x00\x00\x00", "section is there, and empty"),
        (b"\x00\x02" + b"\x00\x01a\x02\x00\x00\x00\x00" + b"\x01\x00\x02\x00\x00\x00\x00", "twice"),
        (b"\x00\x02" + b"\x00\x02aa\x02\x00\x00\x00\x00" + b"\x00\x02ab\x02\x00\x00\x00\x00", "shares more"),
        (b"\x00\x01" + b"\x01\x00\x02\x00\x00\x00\x00", "shared start"),
        (b"\x00\x01" + b"\x00\x01\xff\x02\x00\x00\x00\x00", "not UTF-8"),
        (b"\x00\x01" + b"\x00\x01a\x82\x00\x00\x00\x00", "form 4"),
        (b"\x00\x01" + b"\x00\x01a\x1f\x00\x00\x00\x00", "dtype 31"),
        (b"\x00\x01" + b"\x00\x01a\x02\x00\x03\x00\x00", "stored type is 3"),
        (b"\x00\x01" + b"\x00\x01a\x02\x41", "dimensions is 65"),
        (b"\x00\x01" + b"\x00\x01a\x02\x02\xff\xff\xff\x7f\xff\xff\xff\x7f", "too many weights"),
        (b"\x00\x01" + b"\x00\x01a\x44\x00\x00", "not floating"),
        (b"\x00\x01" + b"\x00\x01a\x42\x01\x01\x03", "flags 0x3"),
        (b"\x00\x01" + b"\x00\x01a\x42\x01\x01\x0c", "flags 0xc"),
        (b"\x00\x01" + b"\x00\x01a\x42\x01\x01\x01\x01", "an axis is 1"),
        (b"\x00\x01" + b"\x00\x01a\x42\x01\x01\x02\x00\x00", "block size 0"),
        (b"\x00\x01" + b"\x00\x01a\x42\x01\x01\x00\x00", "0 levels"),
        (b"\x00\x01" + b"\x00\x01a\x42\x01\x01\x10\x02\x02", "center is 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(data, message):
    with pytest.raises(FormatError, match=message):
        parse_index(data)


def test_aliases_are_sorted():
    first = print_index(Index((entry(),), {"a": "w", "b": "w"}))
    assert parse_index(first).aliases == {"a": "w", "b": "w"}
    with pytest.raises(FormatError, match="out of order"):
        parse_index(first.replace(b"\x00\x01a\x00\x00\x01b", b"\x00\x01b\x00\x00\x01a"))
