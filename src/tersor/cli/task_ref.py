"""``file.py:function`` or ``package.module:function`` -> the :class:`~tersor.task.Task` it returns."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from tersor.errors import TaskError, TersorError, did_you_mean, in_context
from tersor.task import Task

HOW = "write file.py:function or package.module:function"


def load_task(reference: str) -> Task:
    """Import the module, call the function; :class:`TaskError` names the line of the user's that failed.

    The file's folder (for a module: the working folder) is put first on ``sys.path`` and stays there, as
    for ``python file.py``: functions of the task may import their neighbours later.
    """
    with in_context(reference):
        task = _returned(reference, "a TASK")
        if not isinstance(task, Task):
            function = reference.rpartition(":")[2]
            raise TaskError(f"{function}() returned {_a(task)}, not a tersor.Task")
        return task


def load_batches(reference: str) -> Any:
    """What the function of a reference returns, to be batches of samples; errors as for a task."""
    with in_context(reference):
        return _returned(reference, "a reference to data")


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _returned(reference: str, what: str) -> Any:
    source, colon, function = reference.rpartition(":")
    if not colon or not source or not function.isidentifier():
        raise TaskError(f"not {what}: {HOW}")
    module = _import_file(Path(source)) if _is_file(source) else _import_module(source)
    return _call(module, function, what)


def _is_file(source: str) -> bool:
    return source.endswith(".py") or "/" in source or "\\" in source


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"there is no file {str(path)!r}")
    if path.suffix != ".py":
        raise TaskError(f"{str(path)!r} is no Python file: {HOW}")
    _first_on_path(path.resolve().parent)
    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names or not path.stem.isidentifier()
    name = f"tersor_task_{path.stem}" if taken else path.stem
    spec = spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TaskError(f"{str(path)!r} cannot be imported")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _blame("importing it failed", error) from error
    return module


def _import_module(name: str) -> ModuleType:
    _first_on_path(Path.cwd())
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise TaskError(f"there is no module {error.name!r}: {HOW}") from None
        raise _blame("importing it failed", error) from error


def _call(module: ModuleType, name: str, what: str) -> Any:
    function: Any = getattr(module, name, None)
    if function is None:
        known = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise TaskError(f"there is no function {name!r} in it.{did_you_mean(name, known)}")
    if not callable(function):
        raise TaskError(f"{name} is no function but {_a(function)}: {what} is a function")
    try:
        return function()
    except TersorError:
        raise
    except (Exception, SystemExit) as error:
        raise _blame(f"{name}() failed", error) from error


def _first_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _blame(what: str, error: BaseException) -> TaskError:
    """One line: what failed, where in the user's code, with which error."""
    if isinstance(error, SyntaxError):
        where, message = f"{error.filename}, line {error.lineno}", error.msg
    else:
        frame = _innermost(error)
        where = f"{frame.filename}, line {frame.lineno} ({frame.line})"
        message = next(iter(str(error).splitlines()), "")
    return TaskError(f"{what}: {where}: {type(error).__name__}: {message}".rstrip(": "))


def _innermost(error: BaseException) -> traceback.FrameSummary:
    """The last frame outside the libraries, else the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "site-packages" not in one.filename and "importlib" not in one.filename]
    theirs = [one for one in own if Path(one.filename) != Path(__file__)]
    return (theirs or frames)[-1]
