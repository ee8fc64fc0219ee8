from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.artifact.container import Part
from tersor.artifact.forms import decode_tensor, decoded_bytes, digest, encode_tensor
from tersor.errors import FormatError, TensorError
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Raw, raw
from tersor.tensor.groups import Granularity, group_count

SPEEDS = ("fast", "balanced", "small")
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


@st.composite
def granularities(draw, shape):
    kind = draw(st.sampled_from(["tensor", "channel", "block"] if shape else ["tensor"]))
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if kind != "tensor" else 0
    return Granularity(kind, axis, draw(st.integers(1, 9)) if kind == "block" else 0)


@st.composite
def codebooks(draw):
    shape = draw(SHAPES)
    granularity = draw(granularities(shape))
    levels = draw(st.sampled_from([1, 2, 3, 16, 256, 257, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(FLOATS)
    book = np.sort(rng.standard_normal((group_count(shape, granularity), levels)))
    book = book.astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))
    book = book.astype(np.float64 if dtype == torch.float64 else np.float32)
    if draw(st.booleans()) and book.size:
        book[:, levels // 2] = 0
    code_type = np.uint8 if levels <= 256 and draw(st.booleans()) else np.uint16
    codes = rng.integers(0, draw(st.integers(1, levels)), shape).astype(code_type)
    return CompressedTensor(shape, dtype, Codebook(codes, book, granularity))


@st.composite
def grids(draw):
    shape = draw(SHAPES)
    granularity = draw(granularities(shape))
    groups = group_count(shape, granularity)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.sampled_from([1, 2, 200, 70_000, 2**31 - 1]))
    codes = rng.integers(-width, draw(st.sampled_from([1, width])), shape).astype(np.int32)
    zero_point = draw(
        st.sampled_from(
            [
                np.zeros(groups, np.int32),
                np.full(groups, -3, np.int32),
                rng.integers(-9, 9, groups).astype(np.int32),
            ]
        )
    )
    scale = rng.random(groups).astype(np.float32) + np.float32(0.1)
    return CompressedTensor(shape, draw(FLOATS), Affine(codes, scale, zero_point, granularity))


@st.composite
def raws(draw):
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64, torch.bfloat16]))
    values = torch.from_numpy(np.asarray(rng.integers(-3, 3, shape))).to(dtype)
    masked = draw(st.booleans())
    mask = np.asarray(rng.random(shape) < draw(st.sampled_from([0, 0.3, 1]))) if masked else None
    return CompressedTensor(shape, dtype, Raw(values, mask))


@settings(max_examples=200, deadline=None)
@given(st.one_of(codebooks(), grids(), raws()), st.sampled_from(SPEEDS))
def test_every_form_comes_back_bit_for_bit(tensor, speed):
    entry, payloads = encode_tensor("w", tensor, speed)
    again = decode_tensor(entry, b"".join(payloads))
    assert type(again.form) is type(tensor.form)
    assert digest(again) == digest(tensor)
    assert torch.equal(again.decode(), tensor.decode())
    assert again.decode().dtype == tensor.dtype


def weights(levels=16, shape=(8, 40), zero=False):
    rng = np.random.default_rng(0)
    book = np.sort(rng.standard_normal((1, levels)).astype(np.float32))
    if zero:
        book[0, 3] = 0
    codes = rng.integers(0, levels, shape).astype(np.uint8)
    return CompressedTensor(shape, torch.float32, Codebook(codes, book))


def test_a_center_is_stored_only_where_it_does_not_follow():
    assert encode_tensor("w", weights(zero=True), "small")[0].center is None
    without = weights()
    common = int(np.bincount(without.form.codes.reshape(-1)).argmax())
    assert encode_tensor("w", without, "small")[0].center == common


@pytest.mark.parametrize("zero, center", [(True, 3), (False, None)])
def test_a_center_too_many_or_too_few_is_refused(zero, center):
    entry, payloads = encode_tensor("w", weights(zero=zero), "small")
    with pytest.raises(FormatError, match="center"):
        decode_tensor(replace(entry, center=center), b"".join(payloads))


def test_a_codebook_of_half_precision_takes_two_bytes_a_value():
    book = weights().form.codebook.astype(np.float16).astype(np.float32)
    tensor = CompressedTensor((8, 40), torch.float32, Codebook(weights().form.codes, book))
    assert encode_tensor("w", tensor, "small")[0].parts[1].size <= 2 * 16
    assert encode_tensor("w", weights(), "small")[0].parts[1].size > 2 * 16


def test_a_codebook_of_doubles_takes_eight_bytes_a_value_only_where_it_has_to():
    for book, size in ((weights().form.codebook.astype(np.float64), 4), (np.linspace(0, 1, 16)[None], 8)):
        tensor = CompressedTensor((8, 40), torch.float64, Codebook(weights().form.codes, book))
        entry, payloads = encode_tensor("w", tensor, "fast")
        assert entry.stored == f"float{8 * size}" and len(payloads[1]) <= size * 16
        again = decode_tensor(entry, b"".join(payloads))
        assert torch.equal(again.decode(), torch.from_numpy(book[0][weights().form.codes]))


def test_a_constant_has_no_payload_of_codes():
    tensor = CompressedTensor(
        (9, 9), torch.float32, Codebook(np.zeros((9, 9), np.uint8), np.ones((1, 1), "f4"))
    )
    entry, payloads = encode_tensor("w", tensor, "small")
    assert payloads[0] == b""
    assert entry.chunk_bytes <= 2


def test_codes_beyond_the_codebook_are_refused():
    codes = np.full((2, 2), 5, np.uint8)
    with pytest.raises(TensorError, match="codebook of 4 values"):
        encode_tensor(
            "w", CompressedTensor((2, 2), torch.float32, Codebook(codes, np.ones((1, 4), "f4"))), "small"
        )


def test_digests_tell_tensors_apart():
    tensors = [
        weights(), weights(zero=True), weights(shape=(40, 8)), raw(weights().decode()),
        raw(weights().decode().to(torch.float64)), raw(torch.tensor([0.0])), raw(torch.tensor([-0.0])),
    ]  # fmt: skip
    assert len({digest(tensor) for tensor in tensors}) == len(tensors)


def test_memory_is_known_from_the_index():
    entry, _ = encode_tensor("w", weights(shape=(100, 100)), "small")
    assert 100 * 100 * 5 <= decoded_bytes(entry) <= 100 * 100 * 9
    entry, _ = encode_tensor("w", raw(torch.zeros(100, dtype=torch.float64)), "small")
    assert 800 <= decoded_bytes(entry) <= 3000


def test_payloads_that_do_not_fit_their_entry_are_refused():
    entry, payloads = encode_tensor("w", weights(), "small")
    with pytest.raises(FormatError):
        decode_tensor(entry, b"".join(payloads)[:-1])
    constant = CompressedTensor((3,), torch.float32, Codebook(np.zeros(3, np.uint8), np.ones((1, 1), "f4")))
    entry, payloads = encode_tensor("w", constant, "small")
    longer = replace(entry, parts=(Part(0, 1), entry.parts[1]))
    with pytest.raises(FormatError, match="nothing is to be told"):
        decode_tensor(longer, b"\x00" + b"".join(payloads))
