"""What is carried through torch's exporter arrives, and what should not be in a file is taken out."""

import pytest
import torch
from tests import nets
from torch import nn

from tersor.errors import ExportError
from tersor.export.annotate import annotated_onnx, point_name, points
from tersor.model.inputs import model_inputs
from tersor.model.trace import trace


def traced(task):
    model = task.build().eval()
    return trace(model, model_inputs(task, model))


@pytest.fixture(scope="module")
def small():
    return traced(nets.small_task())


def test_points_arrive_behind_values_and_weights(small):
    values = [*small.inputs, *(one.output for one in small.operations)]
    model = annotated_onnx(small, values, ["conv.weight", "head.weight"])
    found = {(kind, name) for _, kind, name in points(model)}
    assert {("weight", "conv.weight"), ("weight", "head.weight")} <= found
    assert {name for kind, name in found if kind == "value"} == set(values)
    for node, kind, name in points(model):
        assert point_name(node.outputs[0]) == f"{kind}:{name}"
        assert point_name(node.inputs[0]) == ""
    readers = {user.op_type for node, kind, _ in points(model) if kind == "weight"
               for user in node.outputs[0].consumers()}  # fmt: skip
    assert readers == {"Conv", "Gemm"}


def test_the_trace_is_left_as_it_was(small):
    before = str(small.graph)
    annotated_onnx(small, small.inputs, ["conv.weight"])
    assert str(small.graph) == before


def test_nothing_tells_where_the_model_was_made(small):
    model = annotated_onnx(small, [], [])
    assert not model.metadata_props and not model.graph.metadata_props
    for node in model.graph:
        assert not node.metadata_props and not node.doc_string
        assert not any(value.metadata_props for value in node.outputs)


def test_sizes_that_are_fixed_are_numbers_and_the_batch_is_free():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0].sum(1)

    def lengths(seed):
        return [(torch.randn(3, 5 + at, 4), torch.zeros(3).long()) for at in range(2)]

    model = annotated_onnx(traced(nets.make_task(Recurrent, lengths)), [], [])
    batch, *rest = model.graph.inputs[0].shape
    assert rest == [5, 4] and not isinstance(batch, int)


def test_an_operator_that_onnx_lacks_is_one_line():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x.flatten(1)[:, :3])

    with pytest.raises(ExportError, match=r"cannot be written as ONNX: .*bessel") as raised:
        annotated_onnx(traced(nets.make_task(Odd, lambda seed: nets.images(1, 6, 3, seed=seed))), [], [])
    assert "\n" not in str(raised.value)
