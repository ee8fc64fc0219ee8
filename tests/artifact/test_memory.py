"""What decoding takes is at most what the index was said to take, for every form and every coding method."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from tersor import coding
from tersor.artifact.container import Part
from tersor.artifact.forms import decode_blob, decode_tensor, decoded_bytes, encode_blob, encode_tensor
from tersor.coding.adaptive import encode_once
from tersor.coding.contexts import encode_contexts
from tersor.coding.framing import write_blob
from tersor.coding.pack import bit_width, byte_width, deflate, pack
from tersor.coding.rans import encode_rans
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Raw, raw
from tersor.tensor.groups import PER_TENSOR, Granularity, group_count

N = 1 << 18
TABLES = 1 << 20  # and blocks: of the few levels here
DRAW = np.random.default_rng(0)


def shared(shape, dtype=torch.float32, granularity=PER_TENSOR, levels=16):
    book = np.sort(DRAW.standard_normal((group_count(shape, granularity), levels)))
    book = book.astype(np.float64 if dtype == torch.float64 else np.float32)
    spread = DRAW.gamma(0.5, 1.0, (shape[0], *[1] * (len(shape) - 1))) + 0.01
    codes = np.minimum(np.abs(np.rint(DRAW.laplace(0, 3, shape) * spread)), levels - 1)
    codes = codes.astype(np.uint8 if levels <= 256 else np.uint16)
    return CompressedTensor(shape, dtype, Codebook(codes, book, granularity))


def grid(shape, width=7, granularity=PER_TENSOR, dtype=torch.float32):
    groups = group_count(shape, granularity)
    codes = np.clip(np.rint(DRAW.laplace(0, width / 6, shape)), -width, width).astype(np.int32)
    form = Affine(codes, np.ones(groups, np.float32), np.arange(groups, dtype=np.int32) + 1, granularity)
    return CompressedTensor(shape, dtype, form)


def masked(values):
    return CompressedTensor(tuple(values.shape), values.dtype, Raw(values, DRAW.random(values.shape) < 0.98))


def normal(dtype):
    return torch.from_numpy(DRAW.standard_normal(N)).to(dtype)


ROWS, BLOCKS = Granularity("channel"), Granularity("block", size=15)
TENSORS = {
    "codes in a row": shared((N,)),
    "codes in a column": shared((N, 1)),
    "codes": shared((512, 512)),
    "codes of 16 bits": shared((512, 512), levels=300),
    "codes of bfloat16": shared((N,), torch.bfloat16),
    "codes of float64": shared((N,), torch.float64),
    "codes by row": shared((512, 512), granularity=ROWS),
    "codes by block": shared((512, 512), granularity=BLOCKS),
    "codes by long block": shared((512, 512), granularity=Granularity("block", size=300)),
    "grid in a row": grid((N,)),
    "grid": grid((512, 512)),
    "grid of 18 bits": grid((512, 512), 90_000),
    "grid by row": grid((N // 4, 4), granularity=ROWS),
    "grid by block": grid((512, 512), granularity=BLOCKS, dtype=torch.float16),
    "masked": masked(normal(torch.float32)),
    "masked float64 as float16": masked(torch.arange(N).double() % 9),
    "masked complex": masked(normal(torch.complex128)),
    "masked bool": masked(torch.arange(N) % 3 == 0),
    "float32": raw(normal(torch.float32)),
    "float32 as bfloat16": raw(normal(torch.bfloat16).float()),
    "float64 as bfloat16": raw((normal(torch.float64) * 1e30).bfloat16().double()),
    "float64 as float16": raw(torch.arange(N).double() % 9),
    "int64 as uint8": raw(torch.arange(N) % 9),
    "bool": raw(torch.arange(N) % 3 == 0),
    "uint8": raw((torch.arange(N) % 9).to(torch.uint8)),
}


def codes_by(method, turned):
    """``coding.encode`` that uses this method, whatever comes out longest."""

    def encode(codes, *, columns, levels, center, speed):
        flat = np.require(codes.reshape(-1), np.uint16, ("C", "W"))
        matrix, limit = flat.reshape(-1, columns), 16 * flat.size + 1000
        payload = (
            lambda: pack(flat, bit_width(levels)),
            lambda: deflate(pack(flat, byte_width(levels)), 3),
            lambda: encode_rans(flat, levels),
            lambda: encode_contexts(matrix, levels, center, transposed=turned),
            lambda: encode_once(matrix, levels, center, limit, transposed=turned),
        )[method]()
        return (0, pack(flat, bit_width(levels))) if payload is None else (method, payload)

    return encode


def values_by(method):
    def encode(data, *, speed):
        items = np.ascontiguousarray(data).reshape(-1)
        plain = items.view(np.uint8)
        if method == 0:
            return 0, plain.tobytes()
        if method == 1:
            return 1, deflate(plain.data, 3)
        planes = plain.reshape(len(items), -1).T
        if len(items) < 1000:
            return 2, b"".join(b"\0" + write_blob(one.tobytes()) for one in planes)
        coded = ((b"\2", encode_rans(one.copy(), 256)) for one in planes)
        bodies = [
            one if one[1] else (b"\0", plane.tobytes()) for one, plane in zip(coded, planes, strict=True)
        ]
        return 2, b"".join(kind + write_blob(body) for kind, body in bodies)

    return encode


def peaks_of(entry, chunk):
    """Bytes at most while a tensor is read, and while it is made dense after that."""
    decode_tensor(entry, chunk)  # compile first
    tracemalloc.start()
    try:
        tensor = decode_tensor(entry, chunk)
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        dense = tensor.decode()
        # What torch takes is not traced: the copy of raw values, beside zeros under a mask; or another type.
        wide = isinstance(tensor.form, Codebook) and tensor.form.codebook.dtype == np.float64
        copies = int(tensor.dtype != (torch.float64 if wide else torch.float32))
        if isinstance(tensor.form, Raw):
            copies = 1 + (tensor.form.mask is not None)
        return reading, tracemalloc.get_traced_memory()[1] + copies * dense.nbytes
    finally:
        tracemalloc.stop()


WAYS = [(0, False, 0), (1, False, 1), (2, False, 2), (3, False, 2), (3, True, 0), (4, False, 2), (4, True, 0)]
EVERY_WAY = ("codes", "codes in a row", "codes in a column", "codes of 16 bits", "grid in a row", "bool")


@pytest.mark.parametrize("name", TENSORS)
def test_decoding_takes_no_more_than_it_says(name, monkeypatch):
    tensor = TENSORS[name]
    for method, turned, values in WAYS if name in EVERY_WAY else WAYS[:3]:
        monkeypatch.setattr(coding, "encode", codes_by(method, turned))
        monkeypatch.setattr(coding, "encode_values", values_by(values))
        entry, payloads = encode_tensor("w", tensor, "fast")
        chunk = b"".join(payloads)
        reading, dense = peaks_of(entry, chunk)
        declared = decoded_bytes(entry)
        assert reading <= declared + len(chunk) + TABLES, (method, turned, values)
        assert dense <= declared + TABLES, (method, turned, values)


def test_opaque_bytes_take_no_more_than_they_say(monkeypatch):
    for method in range(3):
        monkeypatch.setattr(coding, "encode_values", values_by(method))
        blob, payload = encode_blob(bytes(DRAW.geometric(0.3, N).clip(max=255).astype(np.uint8)), "fast")
        decode_blob(blob, payload)
        tracemalloc.start()
        decode_blob(blob, payload)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= decoded_bytes(blob) + len(payload) + TABLES


def test_a_row_of_adaptive_codes_is_told_from_one_that_is_packed():
    entry, _ = encode_tensor("w", TENSORS["codes in a row"], "fast")
    adaptive = replace(entry, parts=(Part(4, 9), entry.parts[1]))
    packed = replace(entry, parts=(Part(0, 9), entry.parts[1]))
    assert decoded_bytes(adaptive) - decoded_bytes(packed) >= 48 * N
    square = replace(adaptive, shape=(512, 512))
    assert decoded_bytes(square) - decoded_bytes(replace(packed, shape=(512, 512))) < N


def test_a_block_far_longer_than_its_channel_takes_no_more():
    form = replace(shared((512, 512), granularity=ROWS).form, granularity=Granularity("block", size=1 << 40))
    tensor = CompressedTensor((512, 512), torch.float32, form)
    entry, payloads = encode_tensor("w", tensor, "fast")
    chunk = b"".join(payloads)
    assert max(peaks_of(entry, chunk)) <= decoded_bytes(entry) + len(chunk) + TABLES
