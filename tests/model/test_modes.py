import pytest
from torch import nn

from tersor.model.modes import modes_restored


@pytest.mark.parametrize("inside", [True, False])
def test_each_module_gets_its_own_mode_back_even_after_a_failure(inside):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())).eval()
    model[1][0].train()
    before = [module.training for module in model.modules()]
    assert {True, False} <= set(before)
    with pytest.raises(KeyError), modes_restored(model):
        model.train(inside)
        raise KeyError
    assert [module.training for module in model.modules()] == before
