import json

import pytest

from tersor.cli.app import run
from tersor.cli.target import check_out


def test_pictures_are_written_and_the_rest_told(task_file, tmp_path, capfd):
    out = tmp_path / "out"
    assert run(["compress", f"{task_file}:make", "-r", "cluster", "-o", str(out)]) == 0
    capfd.readouterr()
    assert run(["plot", str(out), "--task", f"{task_file}:make", "--json"]) == 0
    stdout, err = capfd.readouterr()
    seen = json.loads(stdout)
    assert [one.rsplit("/", 1)[1] for one in seen["pictures"]] == [
        "weights.png",
        "memory-1.png",
        "memory-2.png",
    ]
    assert "not drawn: strategies: there is no strategies.json" in err and "wrote" in err
    check_out(out)  # pictures do not stand in the way of the next run


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere"], 2, "nowhere"),
        (["{here}"], 2, "nothing can be drawn"),
        (["{here}", "--format", "pdf"], 2, "pdf"),
        (["{here}", "--task", "nothing"], 1, "nothing"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, arguments, code, told, capfd):
    assert run(["plot", *(one.format(here=tmp_path) for one in arguments)]) == code
    assert told in capfd.readouterr().err
