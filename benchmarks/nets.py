"""The small nets that papers and tutorials compress, by their published definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as f


def lenet_300_100() -> nn.Sequential:
    """784-300-100-10, ReLU; 266,610 parameters (LeCun et al. 1998; Han et al. 2016)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet5_caffe() -> nn.Sequential:
    """Caffe's LeNet-5: conv 20 and 50 at 5x5, each max-pooled by 2, fc 500, ReLU, fc 10; 431,080.

    Its weights lie channels last, as the images do: it trains in 0.6 of the time.
    """
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def keras_net() -> nn.Sequential:
    """The Keras model-optimization tutorials' net: conv 12 at 3x3, ReLU, max-pool 2, dense; 20,410."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 13 * 13, 10)
    )


class RepeatChannel(nn.Module):
    """(n, 1, h, w) -> (n, 3, h, w): a gray image for a net that was made for colours."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


def mlp_2352() -> nn.Sequential:
    """2352-200-200-10, ReLU, for images of three channels (gray ones are repeated); 512,810 parameters."""
    return nn.Sequential(
        RepeatChannel(), nn.Flatten(),
        nn.Linear(2352, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip


def convnet_87k() -> nn.Sequential:
    """Conv 32, 64, 64 at 3x3 (padded), pooled twice to 7x7, dense 3136x10; 87,690 parameters.

    The count is that of a three-channel input, so gray images are repeated.
    """
    return nn.Sequential(
        RepeatChannel(),
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 10),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut without parameters (He et al. 2016, option A).

    Where the size halves, the shortcut takes every second pixel and pads the new channels with zeros, half of
    them on either side.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.stride = 1 if channels_in == channels_out else 2
        self.widen = (channels_out - channels_in) // 2
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, images: Tensor) -> Tensor:
        shortcut = images
        if self.stride == 2:
            shortcut = f.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.widen, self.widen))
        inner = f.relu(self.norm1(self.conv1(images)))
        return f.relu(self.norm2(self.conv2(inner)) + shortcut)


def resnet20() -> nn.Sequential:
    """ResNet-20 for 32x32 images: 16, 32, 64 channels, three blocks each; 269,722 parameters.

    He et al. 2016 (Deep Residual Learning), section 4.2; weights drawn as in He et al. 2015.
    """
    return _resnet20(16)


def resnet20_half() -> nn.Sequential:
    """ResNet-20 with half as many channels: 8, 16, 32; 68,050 parameters."""
    return _resnet20(8)


def _resnet20(width: int) -> nn.Sequential:
    channels = (*[width] * 4, *[2 * width] * 3, *[4 * width] * 3)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        *(ResidualBlock(before, after) for before, after in pairwise(channels)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return net


_BUILDERS = (lenet_300_100, lenet5_caffe, keras_net, mlp_2352, convnet_87k, resnet20, resnet20_half)
NETS: Mapping[str, Callable[[], nn.Sequential]] = {build.__name__: build for build in _BUILDERS}
