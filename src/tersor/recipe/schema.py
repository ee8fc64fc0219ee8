"""Plain data, as YAML holds it <-> the frozen dataclasses of :mod:`tersor.spec`, checked field by field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from reprlib import Repr
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tersor.errors import SpecError, did_you_mean, in_context
from tersor.patterns import matches
from tersor.spec import STEPS, Distill, Match, Quantize, Recipe, Rule, Step, Train, replace_fields

Data = dict[str, Any]

# One for all tensors of a step: one ranking, one training phase, one pass over the batches.
WHOLE_STEP = (
    "name", "targets", "rules", "train",
    "scope", "schedule", "begin", "end", "mask", "rounds", "max_drop", "rewind", "regrow", "regrow_every",
    "fisher_batches", "update", "reassign",
    "batches", "activations", "calibrator", "correct_bias", "learn_scales",
    "freeze_observers", "freeze_norms",
    "macs", "dead", "round_to", "reestimate", "untraceable",
)  # fmt: skip

# Fields that have fields of their own.
NESTED: Mapping[str, type[Train | Distill]] = {"train": Train, "distill": Distill}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_STEP_NAME = re.compile(r"[^\s.=]+")
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def recipe_from_dict(data: object) -> Recipe:
    """The recipe that ``data`` spells; :class:`SpecError` with the path of whatever is wrong in it.

    >>> recipe_from_dict({"steps": [{"cluster": {"bits": 4}}]}).steps[0].bits
    4
    >>> recipe_from_dict({"steps": [{"cluster": {"bitz": 4}}]})
    Traceback (most recent call last):
    tersor.errors.SpecError: steps[0].cluster.bitz = 4: cluster has no such field. Did you mean 'bits'?
    """
    known = [field.name for field in fields(Recipe)]
    body = _mapping(data, "the recipe")
    for key, value in body.items():
        if key not in known:
            raise _wrong(key, value, f"a recipe has no such field.{did_you_mean(key, known)}")
    if not isinstance(body.get("steps"), list | tuple):
        raise _wrong(
            "steps", body.get("steps"), "a recipe takes a list of steps, as in `- cluster: {bits: 4}`"
        )
    words = {key: _checked(Recipe, key, body[key], key) for key in known if key in body and key != "steps"}
    steps = tuple(_step(one, f"steps[{index}]") for index, one in enumerate(body["steps"]))
    return Recipe(**words, steps=steps)


def recipe_to_dict(recipe: Recipe) -> Data:
    """The inverse of :func:`recipe_from_dict`: plain data with the fields that differ from their defaults."""
    data = _changed(recipe)
    return data | {"steps": [{step.kind: _step_data(step)} for step in recipe.steps]}


def _step(data: object, path: str) -> Step:
    kinds = _mapping(data, path)
    if len(kinds) != 1:
        raise _wrong(path, data, f"a step is one of {', '.join(STEPS)}, with `- ` in front of each step")
    kind, given = next(iter(kinds.items()))
    path = f"{path}.{kind}"
    if kind not in STEPS:
        raise _wrong(path, given, f"no such kind of step.{did_you_mean(kind, STEPS)}")
    body = _fields(STEPS[kind], {} if given is None else given, path)
    rules = body.pop("rules", ())
    with in_context(path):
        step = STEPS[kind](**body)
    if not _STEP_NAME.fullmatch(step.name):
        raise _wrong(f"{path}.name", step.name, "a step's name is one word without '.' and '=', for --set")
    for index, pattern in enumerate(body.get("targets", ())):
        _check_pattern(pattern, f"{path}.targets[{index}]")
    if not rules:
        return step
    if not isinstance(rules, list | tuple):
        raise _wrong(f"{path}.rules", rules, "has to be a list, as in `[{match: conv1, skip: true}]`")
    checked = tuple(_rule(one, step, f"{path}.rules[{index}]") for index, one in enumerate(rules))
    return replace_fields(step, {"rules": checked})


def _rule(data: object, step: Step, path: str) -> Rule:
    body = _mapping(data, path)
    if "match" not in body:
        raise _wrong(path, data, "a rule takes match: a glob, or a regular expression after 're:'")
    own = {key: _checked(Rule, key, body[key], f"{path}.{key}") for key in ("match", "skip") if key in body}
    override = {key: value for key, value in body.items() if key not in own}
    if own.get("skip") and override:
        raise _wrong(path, data, "a rule either skips what it matches or changes fields for it")
    override = _fields(type(step), override, path, also=("match", "skip"))
    for key in override:
        if key in WHOLE_STEP:
            raise _wrong(
                f"{path}.{key}", body[key], f"{key} is one for the whole step: set it there, not in a rule"
            )
    if not override and not own.get("skip"):
        raise _wrong(path, data, "a rule without skip or a field changes nothing: give it one "
                     "(the step's own value, to undo an earlier rule)")  # fmt: skip
    _check_pattern(own["match"], f"{path}.match")
    with in_context(path):
        resolved = replace_fields(step, override)
    if isinstance(resolved, Quantize) and "percentile" in override and resolved.scale != "percentile":
        raise _wrong(f"{path}.percentile", body["percentile"], "activations have one for the whole step, and "
                     f"the weights that match take their scale by {resolved.scale!r}")  # fmt: skip
    return Rule(**own, override=override)


def _check_pattern(pattern: str, path: str) -> None:
    with in_context(path):
        matches(pattern, "")


def _fields(spec: type[Step | Distill | Match], data: object, path: str, also: tuple[str, ...] = ()) -> Data:
    """The checked arguments of ``spec``; ``rules`` are left as they are, for :func:`_rule`."""
    known = [field.name for field in fields(spec)]
    body = _mapping(data, path)
    for key, value in body.items():
        if key not in known:
            hint = did_you_mean(key, [*also, *known])
            raise _wrong(f"{path}.{key}", value, f"{spec.kind} has no such field.{hint}")
    return {key: _field(spec, key, value, f"{path}.{key}") for key, value in body.items()}


def _field(spec: type[Step | Distill | Match], key: str, value: object, path: str) -> object:
    if key == "rules" or (key == "train" and value is None):
        return value
    if key in NESTED:
        return _nested(NESTED[key], value, path)
    if key == "layers":
        if not isinstance(value, list | tuple):
            raise _wrong(path, value, "has to be a list, as in `[{student: block*, teacher: layer*}]`")
        return tuple(_match(one, f"{path}[{index}]") for index, one in enumerate(value))
    return _checked(spec, key, value, path)


def _nested(spec: type[Train | Distill | Match], data: object, path: str) -> Any:
    given = _fields(spec, data, path)
    with in_context(path):
        return spec(**given)


def _match(data: object, path: str) -> Match:
    for side in ("student", "teacher"):
        if side not in _mapping(data, path):
            raise _wrong(path, data, f"a match takes {side}: a glob on module paths, or a regular expression "
                         "after 're:'")  # fmt: skip
    found: Match = _nested(Match, data, path)
    _check_pattern(found.student, f"{path}.student")
    _check_pattern(found.teacher, f"{path}.teacher")
    return found


def _checked(spec: type, key: str, value: object, path: str) -> Any:
    try:
        return _adapters(spec)[key].validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inner = "".join(f"[{at}]" for at in first["loc"] if isinstance(at, int))
        hint = _hints(spec)[key]
        if get_origin(hint) is Literal and isinstance(value, str):
            message = f"no such choice.{did_you_mean(value, get_args(hint))}"
        else:
            message = first["msg"].replace("Input should", "has to", 1).replace("tuple", "list")
        raise _wrong(path + inner, first["input"], message) from None


@cache
def _adapters(spec: type) -> dict[str, TypeAdapter[Any]]:
    # One adapter a field: strictness cannot be laid on a dataclass that does not ask for it itself.
    return {
        field.name: TypeAdapter(_hints(spec)[field.name], config=_STRICT)
        for field in fields(spec)
        if field.name not in ("rules", "train", "steps", "distill", "layers")
    }


@cache
def _hints(spec: type) -> dict[str, Any]:
    return get_type_hints(spec)


def _step_data(step: Step | Distill) -> Data:
    data = _changed(step)
    for name in NESTED:
        if name in data:
            data[name] = _step_data(data[name])
    if "layers" in data:
        data["layers"] = [_changed(one) for one in data["layers"]]
    if "rules" in data:
        data["rules"] = [_rule_data(rule) for rule in data["rules"]]
    return data


def _rule_data(rule: Rule) -> Data:
    data = _changed(rule)
    return data | dict(data.pop("override"))


def _changed(spec: Any) -> Data:
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in fields(spec)
        if (value := getattr(spec, field.name)) != field.default or field.name == "match"
    }


def _mapping(data: object, path: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise _wrong(path, data, f"has to be a mapping of names to values, not {type(data).__name__}")
    for key in data:
        if not isinstance(key, str):
            raise _wrong(path, key, "a name has to be a word")
    return data


def _wrong(path: str, value: object, why: str) -> SpecError:
    return SpecError(f"{path} = {_SHORT.repr(value)}: {why}")
