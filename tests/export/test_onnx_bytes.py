"""What an ONNX file spends on other things than its weights."""

from __future__ import annotations

import onnx
import torch
from torch import nn

import tersor
from tersor.export.reading import known_shapes


def test_the_shapes_that_runtimes_infer_are_not_stored(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    images = torch.rand(8, 1, 8, 8)
    batch = (images, torch.zeros(8, dtype=torch.int64))
    task = tersor.Task(
        name="small",
        build=lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)),
        weights=model.state_dict(),
        train=[batch],
        test=[batch],
        forward=lambda net, one: net(one[0]),
        score=lambda output, one: (output.argmax(1) == one[1]).float(),
    )
    recipe = tersor.Recipe(steps=(tersor.Quantize(bits=4),))
    result = tersor.compress(task, recipe, out=tmp_path / "run")
    tersor.export_model(task, result.path, tmp_path / "small.onnx")
    graph = onnx.load(tmp_path / "small.onnx")
    assert not graph.graph.value_info
    shapes = known_shapes(graph, batch=3)
    assert all(name in shapes for node in graph.graph.node for name in node.output)
