"""What a task calls its model with: arguments, and which of their sizes vary."""

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import TaskError
from tersor.model.inputs import model_call, model_inputs
from tersor.model.program import GraphModel
from tersor.model.trace import trace


class Untouched(nn.Module):
    """Fails if it is run."""

    def forward(self, *args, **kwargs):
        raise AssertionError("the model ran")


def task(test, **fields):
    return tersor.Task(name="t", build=Untouched, weights={}, test=test,
                       score=lambda output, batch: output.argmax(1).float(), **fields)  # fmt: skip


def images(*sizes):
    return [(torch.zeros(size, 3, 8, 8), torch.zeros(size)) for size in sizes]


def test_the_arguments_are_found_without_running_the_model():
    inputs = model_inputs(task(images(4, 4)), Untouched())
    assert [tuple(one.shape) for one in inputs.args] == [(4, 3, 8, 8)]
    assert (inputs.dynamic, inputs.differed) == (((0,),), ((),))


def test_what_comes_after_the_call_does_not_run_either():
    def forward(model, batch):
        try:
            return model(batch[0])
        finally:
            seen.append(len(batch[0]))

    seen = []
    model_inputs(task(images(4, 2), forward=forward), Untouched())
    assert seen == [4, 2]  # `finally` still does, and so do context managers


def test_a_hook_of_the_users_own_does_not_run_and_ours_is_taken_off():
    model = Untouched()
    model.register_forward_pre_hook(lambda module, args: pytest.fail("it ran"))
    model_call(task(images(2)), model, images(2)[0])
    assert len(model._forward_pre_hooks) == 1


def test_sizes_that_differ_between_batches_vary_and_others_do_not():
    data = [{"ids": torch.zeros(2, n, dtype=torch.long), "where": torch.zeros(1, n)} for n in (5, 7)]
    inputs = model_inputs(task(data, forward=lambda model, batch: model(**batch)), Untouched())
    assert list(inputs.kwargs) == ["ids", "where"]
    # `where` is one for all samples: its first dimension is no batch.
    assert (inputs.dynamic, inputs.differed) == (((0, 1), (1,)), ((1,), (1,)))


def test_a_batch_of_one_is_doubled_for_export_takes_one_for_a_constant():
    inputs = model_inputs(task(images(1)), Untouched())
    assert inputs.args[0].shape[0] == 2
    several = [(torch.zeros(3, 4), torch.zeros(1, 4))]
    kept = model_inputs(task(several, forward=lambda model, batch: model(*batch)), Untouched())
    assert [len(one) for one in kept.args] == [3, 1]


def test_example_inputs_come_first():
    inputs = model_inputs(task(images(4), example_inputs=(torch.zeros(2, 3, 9, 8),)), Untouched())
    assert inputs.args[0].shape == (2, 3, 9, 8)
    assert inputs.differed == ((0, 2),)


def test_the_error_of_a_forward_is_a_task_error():
    with pytest.raises(TaskError, match="forward failed: KeyError"):
        model_inputs(task(images(2), forward=lambda model, batch: model({}["x"])), Untouched())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0].sum(1)


def lengths(*sizes):
    return [(torch.randn(2, size, 4), torch.zeros(2)) for size in sizes]


def test_a_size_that_the_graph_fixes_and_the_data_does_not_is_refused():
    model = Recurrent().eval()
    fixed = trace(model, model_inputs(task(lengths(5, 7)), model))
    assert fixed.fixed == "dimension 1 of x to 5"
    with pytest.raises(TaskError, match="fixes dimension 1 of x to 5"):
        GraphModel(model, fixed)
    free = trace(model, model_inputs(task(lengths(5, 5)), model))
    assert not free.fixed
    x = torch.randn(3, 5, 4)
    assert torch.equal(GraphModel(model, free).eval()(x), model(x))
