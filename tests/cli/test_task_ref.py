import sys

import pytest

from tersor.cli.task_ref import load_task
from tersor.errors import TaskError
from tersor.task import Task


@pytest.fixture(autouse=True)
def own_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("torch", "tersor.")):
            del sys.modules[name]


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_function_of_a_file(task_file):
    task = load_task(f"{task_file}:make")
    assert isinstance(task, Task) and task.name == "tiny"


RETURNS = """
from tersor import Task
def make():
    return Task(name={}, build=dict, weights={{}}, test=[], metric=min)
"""


def test_a_function_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts", RETURNS.format("'a'"))
    monkeypatch.chdir(tmp_path)
    assert load_task("parts.mine:make").name == "a"


def test_a_file_may_import_its_neighbours_and_be_called_like_a_library(tmp_path):
    write(tmp_path, "NAME = 'near'", "neighbour.py")
    path = write(tmp_path, "from neighbour import NAME\n" + RETURNS.format("NAME"), "click.py")
    library = sys.modules.get("click")
    assert load_task(f"{path}:make").name == "near"
    assert sys.modules.get("click") is library


@pytest.mark.parametrize("reference", ["task", "task.py", ":make", "task.py:", "task.py:a b", "", "a:b:"])
def test_no_reference(reference):
    with pytest.raises(TaskError, match=r"not a TASK: write file\.py:function"):
        load_task(reference)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", "line 1 (import nowhere_at_all): ModuleNotFoundError: No module named"),
        ("x = 1\ndef f(:\n  pass", "line 2: SyntaxError"),
        ("import sys\nsys.exit('no')", "line 2 (sys.exit('no')): SystemExit: no"),
        ("def mak(): pass", "no function 'make' in it. Did you mean 'mak'?"),
        ("make = 3", "make is no function but an int"),
        ("def make():\n    return 1 / 0", "make() failed: "),
        ("def make():\n    return 1 / 0", "line 2 (return 1 / 0): ZeroDivisionError: division by zero"),
        ("def make(model): pass", "make() failed: "),
        ("def make(): return {}", "make() returned a dict, not a tersor.Task"),
        ("def make(): return None", "make() returned a NoneType"),
        ("class make: pass", "make() returned a make"),
        (
            "from tersor import Task\ndef make():\n  return Task(name='a', build=dict, weights={}, test=[])",
            "exactly one of score",
        ),
    ],
)
def test_each_mistake_in_a_file_is_one_clear_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(TaskError) as error:
        load_task(f"{path}:make")
    assert str(error.value).startswith(f"{path}:make: ") and message in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert "mine" not in sys.modules or "import nowhere" not in text


def test_files_and_modules_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    for reference, message in [
        ("none.py:make", "there is no file 'none.py'"),
        ("sub/none:make", "there is no file 'sub/none'"),
        ("./notes.txt:make", "is no Python file"),
        ("nowhere:make", "there is no module 'nowhere'"),
        ("json.nowhere:make", "there is no module 'json.nowhere'"),
        ("json:make", "no function 'make'"),
    ]:
        with pytest.raises(TaskError, match=message):
            load_task(reference)


def test_a_module_that_fails_inside_is_not_said_to_be_missing(tmp_path, monkeypatch):
    write(tmp_path, "import nowhere_at_all", "inner.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"importing it failed: .*inner\.py, line 1"):
        load_task("inner:make")


def test_a_file_that_failed_is_not_left_imported(tmp_path):
    path = write(tmp_path, "1 / 0")
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        load_task(f"{path}:make")
    assert "mine" not in sys.modules
    path.write_text("def make(): return 5")
    with pytest.raises(TaskError, match=r"returned an int, not a tersor\.Task"):
        load_task(f"{path}:make")


def test_an_interrupt_passes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        load_task(f"{write(tmp_path, 'raise KeyboardInterrupt')}:make")
