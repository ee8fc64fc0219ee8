import pytest
import torch
from benchmarks.nets import NETS, ResidualBlock, resnet20

COUNTS = {
    "lenet_300_100": 266_610,
    "lenet5_caffe": 431_080,
    "mlp_2352": 512_810,
    "keras_net": 20_410,
    "convnet_87k": 87_690,
    "resnet20": 269_722,
    "resnet20_half": 68_050,
}


@pytest.mark.parametrize("name", NETS)
def test_a_net_has_its_published_parameter_count_and_ten_outputs(name):
    net = NETS[name]()
    assert sum(one.numel() for one in net.parameters()) == COUNTS[name]
    shape = (3, 32, 32) if name.startswith("resnet20") else (1, 28, 28)
    assert net(torch.zeros(2, *shape)).shape == (2, 10)


def test_the_shortcut_takes_every_second_pixel_and_pads_the_channels_on_either_side():
    block = ResidualBlock(2, 4).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    images = torch.rand(1, 2, 6, 6)
    out = block(images)
    assert torch.equal(out[:, 1:3], images[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def test_resnet20_is_exported_for_any_number_of_images():
    torch.manual_seed(0)
    net = resnet20().eval()
    exported = torch.export.export(
        net, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("images")},)
    )
    images = torch.randn(5, 3, 32, 32)
    assert torch.allclose(exported.module()(images), net(images), atol=1e-6)
