import numpy as np
import pytest
import torch

from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Raw, raw
from tersor.tensor.groups import Granularity


@pytest.fixture
def small():
    """One tensor of each form, without randomness: the content of the golden file."""
    ramp = (np.arange(24) * 7 % 5).reshape(4, 6)
    book = np.array([[-0.5, -0.25, 0, 0.25, 0.75]], np.float32)
    per_row = np.array([[-1, 1.0001], [-2, 2], [-3, 3], [-4, 4]], np.float32)
    grid = Affine((ramp - 2).astype(np.int32), np.full(4, 0.125, np.float32), np.arange(4, dtype=np.int32),
                  Granularity("channel"))  # fmt: skip
    mask = ramp > 3
    return {
        "fc.weight": CompressedTensor((4, 6), torch.float32, Codebook(ramp.astype(np.uint8), book)),
        "fc.bias": raw(torch.tensor([0.1, -0.2, 0.3, 1.0])),
        "rows": CompressedTensor(
            (4, 6), torch.bfloat16, Codebook((ramp > 2).astype(np.uint8), per_row, Granularity("channel"))
        ),
        "grid": CompressedTensor((4, 6), torch.float16, grid),
        "pruned": CompressedTensor((4, 6), torch.float32, Raw(torch.ones(4, 6), mask)),
        "steps": raw(torch.tensor(1234567)),
        "none": raw(torch.zeros(0, 3)),
        "flags": raw(torch.tensor([True, False, True])),
    }
