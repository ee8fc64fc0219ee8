import pytest

TASK = """
import torch
from torch import nn
from tersor import Task

print("this goes to stderr when --json is given")
torch.manual_seed(0)
LABELS = torch.arange(64) % 4
INPUTS = torch.randn(64, 8) + 4 * torch.eye(8)[LABELS]

def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def loss(output, batch):
    return nn.functional.cross_entropy(output, batch[1])

def right(output, batch):
    return (output.argmax(1) == batch[1]).float()

def make():
    torch.manual_seed(1)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(INPUTS), (INPUTS, LABELS)).backward()
        optimizer.step()
    batches = [(INPUTS[:32], LABELS[:32]), (INPUTS[32:], LABELS[32:])]
    return Task(name="tiny", build=build, weights=model.state_dict(), loss=loss, score=right,
                train=batches, validation=batches[:1], test=batches)
"""


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "tiny_task.py"
    path.write_text(TASK)
    return path
