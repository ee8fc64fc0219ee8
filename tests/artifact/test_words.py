import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.artifact.container import DTYPES, STORED
from tersor.artifact.words import bit_view, components, dtype_name, from_bits, itemsize, narrow, widen
from tersor.errors import TensorError

KNOWN = [name for name in DTYPES if hasattr(torch, name)]


def random_bits(dtype, count, seed):
    size = itemsize(components(dtype)[0])
    bits = np.random.default_rng(seed).integers(0, 256, count * size, np.uint8).view(f"u{size}")
    return bits & 1 if dtype == "bool" else bits


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KNOWN), st.integers(0, 40), st.integers(0, 2**32))
def test_words_are_the_bits_of_any_dtype(dtype, count, seed):
    bits = random_bits(dtype, count * components(dtype)[1], seed)
    tensor = from_bits(bits.copy(), dtype, (count,))
    assert tensor.dtype == getattr(torch, dtype)
    assert np.array_equal(bit_view(tensor), bits)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KNOWN), st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 62))
def test_narrowing_loses_no_bit(dtype, count, seed, shift):
    component = components(dtype)[0]
    bits = random_bits(component, count, seed)
    if bits.dtype.itemsize > 1:  # few high bits make ints, many low zero bits make floats that fit
        shift %= 8 * bits.dtype.itemsize
        bits = bits >> shift if "int" in dtype else bits >> shift << shift
    stored, low = narrow(bits, component, STORED[dtype])
    assert low.dtype.itemsize == itemsize(stored)
    assert np.array_equal(widen(low, stored, component), bits)


@pytest.mark.parametrize(
    "values, dtype, stored",
    [
        ([0.5, -0.0, 65504.0, 2.0**-24], torch.float32, "float16"),
        ([1.0, 65536.0], torch.float32, "bfloat16"),
        ([1.0, 2.0**-126], torch.float32, "bfloat16"),
        ([1.0, 1.0 + 2.0**-20], torch.float32, "float32"),
        ([float("inf"), -1.0], torch.float32, "float16"),
        ([1.0, 2.0**-20 + 1], torch.float64, "float32"),
        ([0.1], torch.float64, "float64"),
        ([7], torch.int64, "uint8"),
        ([-7], torch.int64, "int8"),
        ([40000, 3], torch.int64, "uint16"),
        ([-1, 300], torch.int32, "int16"),
        ([2**40], torch.int64, "int64"),
    ],
)
def test_the_narrowest_type_is_found(values, dtype, stored):
    name = dtype_name(dtype)
    assert narrow(bit_view(torch.tensor(values, dtype=dtype)), name, STORED[name])[0] == stored


def test_a_nan_is_never_converted():
    words = np.array([0x7FA00001, 0x7FC00000], np.uint32)
    stored, same = narrow(words, "float32", STORED["float32"])
    assert (stored, same.tolist()) == ("float32", words.tolist())
    quiet = np.array([0x7FF8000000000000], np.uint64)
    assert narrow(quiet, "float64", STORED["float64"])[0] == "float64"


def test_lazy_conjugates_are_resolved():
    tensor = torch.tensor([1 + 2j]).conj()
    assert bit_view(tensor).view(np.float32).tolist() == [1.0, -2.0]


def test_a_dtype_without_a_name_is_refused():
    with pytest.raises(TensorError, match="quint8"):
        dtype_name(torch.quint8)
