"""Bytes of weights and of buffers, in one precision and in several."""

import numpy as np
import pytest
import torch

from tersor.measure.footprint import footprint, uniform_flow, uniform_weights
from tersor.measure.memory import lay_out
from tersor.measure.mixed import Precisions, mixed_flow
from tersor.measure.size import packed_bytes
from tersor.model.dataflow import Buffer, Dataflow, Kernel
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, raw
from tersor.tensor.groups import Granularity


def kernel(name, reads, makes, over=(), tensors=(), macs=0, writes=(), after=(), spans=None):
    spans = spans or (16,) * len(reads)
    return Kernel(name, name, "", name, (4,), reads, spans, makes, over, writes, after, tensors, macs)


def dataflow(*kernels, inputs=("x",), outputs=("y",), elements=16):
    names = [*inputs, *(made for one in kernels for made in one.makes)]
    buffers = {name: Buffer(name, elements, 4, True) for name in names}
    return Dataflow(kernels, buffers, {name: (name,) for name in names}, inputs, frozenset(outputs))


CHAIN = dataflow(
    kernel("a", ("x",), ("a",), tensors=("w", "b"), macs=40),
    kernel("r", ("a",), ("r",), over=("a",)),
    kernel("y", ("r",), ("y",), tensors=("w",), macs=40),
)


def test_one_precision():
    dense = {"w": torch.zeros(4, 6), "b": torch.zeros(4), "count": torch.tensor(3)}
    found = footprint("INT8", CHAIN, uniform_flow(CHAIN, 8), uniform_weights(dense, 8), samples=2)
    assert [one.weights_bytes for one in found.layers] == [4 * 6 + 4 * 4 + 4 * 4, 0, 0]  # tied: once
    assert found.weights_bytes == 56 and [one.macs for one in found.layers] == [20, 0, 20]
    assert [(one.read_bytes, one.made_bytes, one.live_bytes) for one in found.layers] == [
        (16, 16, 32), (16, 16, 16), (16, 16, 32)]  # fmt: skip
    assert found.arena.peak_bytes == 32 and found.total_bytes == 56 + found.arena.size_bytes
    assert uniform_flow(CHAIN, 4).sizes["a"] == 8 and uniform_flow(CHAIN, 16).sizes["a"] == 32
    assert uniform_weights(dense, 16) == {"w": 48, "b": 8, "count": 8}


def mixed(flow, bits, integer, copied=()):
    return mixed_flow(flow, Precisions(bits, frozenset(integer), dict(copied)))


def names(flow):
    return [one.name for one in flow.nodes]


def test_codes_from_the_first_layer_to_the_last():
    flow = mixed(CHAIN, {"x": 8, "a": 8, "r": 8}, {"a", "r", "y"})
    assert names(flow) == ["quantize x", "a", "r", "y"]
    assert flow.sizes == {"x": 64, "quantize x": 16, "a": 16, "r": 16, "y": 64}
    assert lay_out(flow, alignment=1).live_bytes == (80, 32, 16, 80)
    assert flow.kept == {"y"}


def test_floats_and_codes_in_turn():
    flow = mixed(CHAIN, {"a": 8, "r": 4, "y": 8}, {"a", "y"})
    assert names(flow) == ["a", "dequantize a", "r", "quantize r", "y", "dequantize y"]
    assert flow.sizes["quantize r"] == 8 and flow.kept == {"dequantize y"}
    assert flow.nodes[2].reads == ("dequantize a",) and flow.nodes[2].over == ("dequantize a",)


def test_what_only_some_readers_see_as_codes():
    flow = mixed(CHAIN, {"r": 8}, {"y"}, {"r": frozenset({"y"})})
    assert names(flow) == ["a", "r", "quantize r", "y"] and flow.sizes["r"] == 64
    assert flow.nodes[3].reads == ("quantize r",)


def test_only_the_part_that_is_read_becomes_floats():
    cut = dataflow(kernel("a", ("x",), ("a",)), kernel("y", ("a",), ("y",), spans=(5,)))
    flow = mixed(cut, {"a": 8}, {"a"})
    assert flow.sizes["a"] == 16 and flow.sizes["dequantize a"] == 20


def test_a_conversion_waits_for_what_is_written_in_place():
    written = dataflow(
        kernel("a", ("x",), ("a",)),
        kernel("i", ("a",), (), writes=("a",)),
        kernel("y", ("a",), ("y",), after=("i",)),
    )
    flow = mixed(written, {"a": 8}, {"y"})
    assert names(flow) == ["a", "i", "quantize a", "y"] and flow.nodes[2].after == ("i",)


def test_integers_have_their_own_size():
    buffer = Buffer("ids", 5, 8, False)
    assert buffer.size_bytes(4) == 40 and Buffer("x", 5, 4, True).size_bytes(4) == 3


@pytest.mark.parametrize(
    ("codes", "zero_point", "expected"),
    [
        ([[-7, 7, 0], [1, 2, 3]], [0, 0], 3 + 8),
        ([[0, 15, 0], [1, 2, 3]], [8, 8], 3 + 8 + 1),
        ([[-8, 15, 0], [1, 2, 3]], [0, 0], 6 + 8),
        ([[0, 255, 0], [1, 2, 3]], [128, 7], 6 + 8 + 2),
    ],
)
def test_packed_integers(codes, zero_point, expected):
    form = Affine(np.array(codes, np.int32), np.ones(2, np.float32), np.array(zero_point, np.int32),
                  Granularity("channel", 0))  # fmt: skip
    assert packed_bytes(CompressedTensor((2, 3), torch.float32, form)) == expected


@pytest.mark.parametrize(
    ("book", "expected"),
    [([0.0, 1.0, 2.5], 6 // 2 + 3 * 4), ([-127.0, 0.0, 3.0], 6 // 2 + 3 + 4), ([*range(19), 127], 6 + 20 + 4),
     (np.linspace(0, 1.7, 20) ** 3, 6 + 80)],
)  # fmt: skip
def test_packed_codebooks(book, expected):
    form = Codebook(np.zeros((2, 3), np.uint8), np.array([book], np.float32))
    assert packed_bytes(CompressedTensor((2, 3), torch.float32, form)) == expected


def test_what_has_no_codes_has_its_own_type():
    assert packed_bytes(raw(torch.zeros(3, 5))) == 60 and packed_bytes(raw(torch.zeros(3).half())) == 6
