import pytest

from tersor.errors import SpecError
from tersor.structure import Change


@pytest.mark.parametrize("value", [0, 2, -1])
def test_a_value_out_of_range_is_refused(value):
    with pytest.raises(SpecError, match=f"identity is {value}"):
        Change("norm", "identity", value)


def test_an_unknown_word_is_refused():
    with pytest.raises(SpecError, match="Did you mean 'bias'"):
        Change("fc", "biass", 3)
