from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.errors import TensorError
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Raw, raw
from tersor.tensor.groups import Granularity

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 3)])
def test_raw_keeps_everything(dtype, shape):
    tensor = (torch.arange(int(np.prod(shape))).reshape(shape) % 5).to(dtype)
    packed = raw(tensor)
    decoded = packed.decode()
    assert decoded.dtype == dtype
    assert torch.equal(decoded, tensor)
    if tensor.numel():
        decoded.view(-1)[0] = 1 - decoded.view(-1)[0].to(torch.uint8)
        assert torch.equal(packed.decode(), tensor)  # what decode() hands out is the caller's own
    mask = np.zeros(shape, bool)
    assert not raw(tensor, mask).decode().any()


def test_raw_takes_strided_tensors_with_gradient():
    tensor = torch.arange(6.0, requires_grad=True).reshape(2, 3).t()
    decoded = raw(tensor).decode()
    assert torch.equal(decoded, tensor)
    assert not decoded.requires_grad


@pytest.mark.parametrize(
    "shape,granularity",
    [
        ((), Granularity()),
        ((), Granularity("channel")),
        ((0, 3), Granularity("channel")),
        ((3, 0), Granularity("block", size=2)),
        ((4, 5), Granularity("channel", axis=-1)),
        ((4, 5), Granularity("block", axis=-1, size=3)),
        ((2, 3, 4), Granularity("block", axis=1, size=3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_decode_group_by_group(shape, granularity, dtype):
    from tersor.tensor.groups import expand_groups, group_count

    groups = group_count(shape, granularity)
    codes = np.random.default_rng(0).integers(0, 4, shape)
    group = np.broadcast_to(expand_groups(np.arange(groups), shape, granularity), shape)
    book = np.arange(groups * 4, dtype=np.float32).reshape(groups, 4)
    packed = CompressedTensor(shape, dtype, Codebook(np.asarray(codes, np.uint8), book, granularity))
    assert packed.decode().dtype == dtype
    assert np.array_equal(packed.decode().float().numpy(), group * 4 + codes)
    scale = np.arange(1, groups + 1, dtype=np.float32)
    zero_point = np.arange(groups, dtype=np.int32)
    affine = Affine(np.asarray(codes, np.int32), scale, zero_point, granularity)
    decoded = CompressedTensor(shape, dtype, affine).decode()
    assert np.array_equal(decoded.float().numpy(), (group + 1) * (codes - group))


def test_parts_that_do_not_fit_are_refused():
    codes = np.zeros((2, 3), np.uint8)
    book = np.zeros((1, 2), np.float32)
    with pytest.raises(TensorError, match=r"\(2, 3\).*\(3, 2\)"):
        CompressedTensor((3, 2), torch.float32, Codebook(codes, book))
    with pytest.raises(TensorError, match="1 groups are stored"):
        CompressedTensor((2, 3), torch.float32, Codebook(codes, book, Granularity("channel")))
    for dtype, right, wrong in (("float32", "float32", "float64"), ("float64", "float64", "float32")):
        with pytest.raises(TensorError, match=f"weights is {right}, not {wrong}"):
            CompressedTensor((2, 3), getattr(torch, dtype), Codebook(codes, book.astype(wrong)))
    with pytest.raises(TensorError, match="int64"):
        CompressedTensor((2, 3), torch.int64, Codebook(codes, book))
    with pytest.raises(TensorError, match="shapes"):
        CompressedTensor((2, 3), torch.float32, Raw(torch.zeros(2, 3), np.zeros((3, 2), bool)))
