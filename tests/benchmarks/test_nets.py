import pytest
import torch
from benchmarks.nets import NETS

COUNTS = {"lenet_300_100": 266_610, "lenet5_caffe": 431_080, "keras_net": 20_410, "convnet_87k": 87_690}


@pytest.mark.parametrize("name", NETS)
def test_a_net_has_its_published_parameter_count_and_ten_outputs(name):
    net = NETS[name]()
    assert sum(one.numel() for one in net.parameters()) == COUNTS[name]
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
