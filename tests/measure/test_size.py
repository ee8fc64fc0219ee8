import torch
from torch import nn

from tersor.measure.size import dense_bytes, file_bytes


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(1000), persistent=False)
        self.register_buffer("empty", torch.zeros(0, 4))


def test_parameters_and_persistent_buffers_count_once():
    floats = 7 * 4 + 4 * 4  # the tied matrix; weight, bias, mean and variance of the norm
    assert dense_bytes(Tied()) == 4 * floats + 8  # num_batches_tracked is one int64


def test_bytes_follow_the_dtype():
    assert dense_bytes(nn.Linear(10, 5, bias=False).to(torch.bfloat16)) == 100


def test_equal_layers_that_share_nothing_count_twice():
    assert dense_bytes(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))) == 2 * 48


def test_the_weights_beside_an_xml_file_count(tmp_path):
    for name, size in (("net.xml", 30), ("net.bin", 500), ("net.onnx", 7)):
        (tmp_path / name).write_bytes(bytes(size))
    assert file_bytes(tmp_path / "net.xml") == 530 and file_bytes(tmp_path / "net.onnx") == 7
    (tmp_path / "net.bin").unlink()
    assert file_bytes(tmp_path / "net.xml") == 30
