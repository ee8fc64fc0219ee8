import pytest
import torch
from benchmarks.data import Batches, Images
from benchmarks.nets import keras_net
from benchmarks.results import write_results
from benchmarks.tasks import correct, forward

import tersor
from benchmarks import verify

NAME = "keras_net-demo-0.tersor"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An artifact of an untrained net, on 40 made-up images, and the results that name it."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 28, 28), generator=draw, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (40,), generator=draw))

    def task(net):
        return tersor.Task(
            name=net,
            build=keras_net,
            weights="not-needed.pt",
            test=Batches(images, 16),
            forward=forward,
            score=correct,
        )

    monkeypatch.setattr(verify, "net_task", task)
    (tmp_path / "artifacts").mkdir()
    torch.manual_seed(0)
    tersor.save(keras_net(), tmp_path / "artifacts" / NAME)
    claim(tmp_path)
    return tmp_path


def claim(folder, **changes):
    path = folder / "artifacts" / NAME
    row = {
        "net": "keras_net",
        "artifact": f"benchmarks/artifacts/{NAME}",
        "size_bytes": path.stat().st_size,
        "error_percent": verify.error_percent("keras_net", path),
    }
    rows = [{"net": "keras_net", "note": "no artifact"}, row | changes]
    write_results("demo", "make demo", rows, folder=folder / "results")
    return row | changes


def run(folder):
    return verify.main(folder / "results", folder / "artifacts")


def test_what_agrees_passes(folder, capsys):
    assert run(folder) == 0
    assert f"{NAME} (demo.json): as claimed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_bytes": 3}, "bytes, the row says 3"),
        ({"error_percent": 1.5}, "%, the row says 1.5 %"),
        ({"net": "other"}, "net 'other' is not in benchmarks.nets"),
        ({"artifact": "benchmarks/artifacts/gone.tersor"}, "there is no such file"),
    ],
)
def test_each_claim_that_does_not_hold_is_named(folder, capsys, changes, words):
    claim(folder, **changes)
    assert run(folder) == 5
    assert words in capsys.readouterr().out


def test_another_net_in_the_file_is_told(folder, capsys):
    torch.manual_seed(1)
    tersor.save(keras_net(), folder / "artifacts" / NAME)
    assert run(folder) == 5
    assert "the error is" in capsys.readouterr().out


def test_a_damaged_file_is_told(folder, capsys):
    path = folder / "artifacts" / NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run(folder) == 5
    assert "FormatError" in capsys.readouterr().out


def test_a_row_without_its_figures_and_a_file_without_a_row_are_told(folder, capsys):
    row = claim(folder)
    del row["error_percent"]
    assert verify.differences(row, folder / "artifacts") == ["the row lacks error_percent"]
    (folder / "artifacts" / "stray.tersor").write_bytes(b"")
    assert run(folder) == 5
    assert "stray.tersor: no row" in capsys.readouterr().out


def test_nothing_to_verify_is_no_success(tmp_path, capsys):
    for name in ("results", "artifacts"):
        (tmp_path / name).mkdir()
    assert run(tmp_path) == 5
    assert "nothing to verify" in capsys.readouterr().out


def test_a_path_outside_the_artifacts_is_never_opened(folder):
    row = claim(folder, artifact=f"../../{NAME}")
    assert verify.artifact_path(row, folder / "artifacts") == folder / "artifacts" / NAME
