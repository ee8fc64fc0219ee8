"""YAML text, files and presets <-> recipes; changes from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tersor.errors import SpecError, did_you_mean, in_context
from tersor.recipe.schema import NESTED, Data, recipe_from_dict, recipe_to_dict
from tersor.recipe.yaml12 import RecipeDumper, RecipeLoader
from tersor.spec import FAMILIES, Recipe, Step

MAX_BYTES = 1 << 20


def preset_names() -> tuple[str, ...]:
    """The recipes that ship with tersor, by name.

    >>> preset_names()[:4]
    ('cluster', 'cluster-int8', 'cluster-tune', 'deep-compression')
    """
    names = (entry.name for entry in files("tersor.recipe").joinpath("presets").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """The YAML of a preset, with the comments that explain it."""
    if name not in preset_names():
        raise SpecError(f"no preset is named {name!r}.{did_you_mean(name, preset_names())}")
    return files("tersor.recipe").joinpath("presets", f"{name}.yaml").read_text("utf-8")


def load_recipe(source: str | Path | Recipe) -> Recipe:
    """The recipe of a preset's name or a YAML file's path; a :class:`Recipe` is checked and returned.

    >>> [step.name for step in load_recipe("cluster-tune").steps]
    ['cluster', 'code']
    """
    if isinstance(source, Recipe):
        with in_context(f"recipe {source.name!r}"):
            return recipe_from_dict(recipe_to_dict(source))
    if not isinstance(source, str | Path):
        raise SpecError(f"a recipe is a preset's name, a YAML file or a tersor.Recipe, not a {_kind(source)}")
    where, text = recipe_text(source)
    with in_context(where):
        return parse_recipe(text)


def recipe_text(source: str | Path) -> tuple[str, str]:
    """(what it is called in messages, the YAML as it is written) of a preset or a file."""
    if isinstance(source, str) and source in preset_names():
        return f"preset {source!r}", preset_text(source)
    path = Path(source)
    with in_context(str(source)):
        return str(source), _read(path)


def parse_recipe(text: str) -> Recipe:
    """The recipe in a YAML text; inverse of :func:`dump_recipe`.

    >>> parse_recipe("steps: [prune: {fraction: 0.9}]").steps[0].fraction
    0.9
    """
    data = _parse(text)
    if data is None:
        raise SpecError(
            "there is nothing in it: a recipe takes `steps:`, as `tersor recipe show cluster` shows"
        )
    return recipe_from_dict(data)


def dump_recipe(recipe: Recipe) -> str:
    r"""The recipe as YAML, with the fields that differ from their defaults.

    >>> from tersor.spec import Cluster
    >>> dump_recipe(Recipe(name="four", steps=(Cluster(bits=4),)))
    'name: four\nsteps:\n- cluster:\n    bits: 4\n'
    """
    data = recipe_to_dict(recipe)
    return yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def apply_sets(recipe: Recipe, sets: Iterable[str]) -> Recipe:
    """A copy with each ``STEP.FIELD=VALUE`` set; VALUE is YAML, and ``STEP.train.FIELD`` reaches inside.

    All are set before the recipe is checked, so two that only hold together may come in any order.

    >>> apply_sets(load_recipe("cluster"), ["cluster.bits=3"]).steps[0].bits
    3
    """
    data = recipe_to_dict(recipe)
    bodies = {
        step.name: (step.kind, next(iter(one.values())))
        for step, one in zip(recipe.steps, data["steps"], strict=True)
    }
    given = list(sets)
    for text in given:
        with in_context(f"--set {text}"):
            _set(bodies, text)
    if not given:
        return recipe
    with in_context(f"with --set {', '.join(given)}"):
        return recipe_from_dict(data)


def _kind(source: object) -> str:
    """What was given in the place of a recipe; for steps, how to make one of them."""
    if isinstance(source, Step):
        return f"step: give Recipe(steps=({type(source).__name__}(...),))"
    if isinstance(source, tuple | list):
        return f"{type(source).__name__}: give Recipe(steps=(...,))"
    return type(source).__name__


def _set(bodies: dict[str, tuple[str, Data]], text: str) -> None:
    path, equals, written = text.partition("=")
    name, *keys = path.strip().split(".")
    if not equals or not written.strip() or not keys:
        raise SpecError("has to be STEP.FIELD=VALUE, as in cluster.bits=3 (null takes a value away)")
    if name not in bodies:
        raise SpecError(f"no step is named {name!r}.{did_you_mean(name, bodies)}")
    kind, body = bodies[name]
    for depth, key in enumerate(keys[:-1]):
        if key not in NESTED or key in keys[:depth]:
            inner = ".".join((kind, *keys[: depth + 1]))
            raise SpecError(f"{inner} has no fields inside: only a train phase has, and distill in it, "
                            "as in prune.train.lr=1e-4")  # fmt: skip
        body = body.setdefault(key, {})
    for family in FAMILIES:
        if keys[-1] in family:
            for other in family:
                body.pop(other, None)
    body[keys[-1]] = _parse(written)


def _read(path: Path) -> str:
    if not path.exists():
        known = preset_names()
        raise SpecError(f"neither a preset nor a file.{did_you_mean(str(path), known)}")
    if not path.is_file():
        raise SpecError("not a file: a recipe is a preset's name or a YAML file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SpecError(f"more than {MAX_BYTES} bytes: that is not a recipe")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"not text: byte {error.start} is no UTF-8; a recipe is a YAML file") from None


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"not YAML: {where}{what}") from None
    except yaml.reader.ReaderError as error:
        raise SpecError(f"not YAML: character {error.character!r} at {error.position} is not text") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not YAML that can be read: {error}") from None
