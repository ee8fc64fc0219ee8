import json
from dataclasses import asdict

import pytest
import torch

from benchmarks import baselines

KEY = "keras_net", False


@pytest.fixture
def note(tmp_path, monkeypatch):
    """A baseline that is there, made before ``Train`` had all of its fields."""
    weights = tmp_path / "net.pt"
    monkeypatch.setattr(baselines, "baseline_path", lambda *args, **kwargs: weights)
    monkeypatch.setattr(baselines, "_train", lambda *args, **kwargs: ({"trained": "anew"}, {}))
    torch.save({}, weights)
    settings = asdict(baselines.SETTINGS[KEY])
    del settings["clip_norm"]
    path = weights.with_suffix(".json")
    path.write_text(json.dumps({"settings": settings, "trained": "before"}))
    return path


def test_a_field_that_came_later_does_not_train_a_baseline_anew(note):
    assert baselines.record("keras_net", shifts=False)["trained"] == "before"


def test_other_settings_do(note):
    row = json.loads(note.read_text())
    row["settings"]["lr"] = 1.0
    note.write_text(json.dumps(row))
    assert baselines.record("keras_net", shifts=False)["trained"] == "anew"
