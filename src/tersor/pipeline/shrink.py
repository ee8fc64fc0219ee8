"""The step that removes channels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tersor.calibrate.norms import reestimate_norms_
from tersor.calibrate.units import unit_importance
from tersor.errors import TargetError, TaskError, VerificationError, in_context
from tersor.model.attach import attach_collected_, plain_copy
from tersor.model.coupling import Coupling
from tersor.model.coupling_rules import couple, few_samples
from tersor.model.dead import dead_units
from tersor.model.inputs import Inputs, model_inputs
from tersor.model.parametrization import SharedWeight
from tersor.model.restore import trained_model
from tersor.model.select import Selected, select
from tersor.model.shrink import Group, check_same, groups_of, macs, masked, protect, remove, shrunk, sliced
from tersor.model.storage import state, storages
from tersor.model.structure import apply_changes_, output_channels, takes_bias
from tersor.pipeline.choose import choose, left_of, rank
from tersor.pipeline.context import Context, inside_step, seeded, train_
from tersor.pipeline.masked_rows import mask_rows
from tersor.pipeline.work import Work
from tersor.progress import inside
from tersor.result import Touched
from tersor.spec import AFTER_ACTIVATIONS, Shrink
from tersor.structure import Change

_LOSSLESS = 1e-5
_UNKNOWN = "its channels are not known: it is no layer that the graph calls as one"
_UNREAD = "a depthwise convolution of channels that no layer makes"


def shrink(work: Work, step: Shrink, context: Context) -> list[Touched]:
    """Take channels out of the model: from then on it is smaller, its changes say how."""
    if work.points:
        raise TargetError(AFTER_ACTIVATIONS[Shrink])
    selected = select(work.model, step)
    inputs = model_inputs(context.task, work.model)
    try:
        coupling = couple(work.model, inputs)
    except TaskError as error:
        if step.untraceable == "error":
            raise TaskError(
                f"{error}; or set untraceable: masks, which zeroes rows and removes none"
            ) from error
        rows = mask_rows(work, step, selected, context.seed)
    else:
        groups = protect(work.model, coupling, groups_of(coupling), few_samples(inputs)[0])
        chosen, skipped = _resolve(coupling, groups, selected, step)
        removed = _removed(work, coupling, chosen, inputs, step, context)
        rows = _report(coupling, chosen, skipped, removed)
        _apply(work, coupling, removed, inputs, step, context)
    if step.reestimate:
        with seeded(context):
            reestimate_norms_(work.model, context.task, step.reestimate, context.device)
    if step.train is not None:
        rows += train_(work, step.train, inside_step(step, context))
    return rows


Chosen = list[tuple[Group, Shrink]]
Skipped = list[tuple[str, str]]


def _resolve(
    coupling: Coupling, groups: list[Group], selected: list[Selected], step: Shrink
) -> tuple[Chosen, Skipped]:
    """The groups that lose units, each with its step; and the layers that do not, with the reason."""
    by_name = {one.storage.name: one for one in selected}
    chosen: Chosen = []
    skipped: Skipped = []
    for group in groups:
        layers = [by_name[name] for name in (*group.layers, *group.carriers)]
        sharers = [by_name[name] for name in group.sharers if name in by_name]
        reason = group.reason or _left_out(layers, sharers)
        if reason:
            _check_not_named(layers, step, reason)
            skipped += [(one.storage.name, one.reason or reason) for one in layers]
            continue
        chosen.append((group, _step_of(layers, len(group.layers), step)))
    known = {name for group in groups for name in (*group.layers, *group.carriers)}
    unread = {name for name, _ in coupling.carriers} - known
    for one in selected:
        if one.storage.kind == "weight" and one.storage.name not in known:
            reason = one.reason or (_UNREAD if one.storage.name in unread else _UNKNOWN)
            if one.step is not None:
                _check_not_named([one], step, reason)
            skipped.append((one.storage.name, reason))
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        raise TargetError(f"no layer has channels that could be removed ({reasons})")
    return chosen, skipped


def _left_out(layers: list[Selected], sharers: list[Selected]) -> str:
    """Why coupled layers are left alone: a rule skips one of them (or a norm), or a target is missing."""
    out = [one for one in layers if one.step is None]
    out += [one for one in sharers if one.ruled_out and one.storage.kind == "vector"]
    if not out:
        return ""
    if len(out) == len(layers) and not any(one in sharers for one in out):
        return out[0].reason
    held = next((one for one in out if one.ruled_out), None)
    names = [one.storage.name for one in out] if held is None else [held.storage.name]
    return f"goes with {_and_others(names)}: {(held or out[0]).reason}"


def _step_of(layers: list[Selected], makers: int, step: Shrink) -> Shrink:
    """The step that a group's layers share; a depthwise one follows unless a rule gives it an amount."""
    steps = [cast(Shrink, one.step) for one in layers]
    steps = steps[:makers] + [one for one in steps[makers:] if one is not step]
    amounts = {(one.amount, getattr(one, one.amount)) for one in steps}
    if len(amounts) > 1:
        names = ", ".join(one.storage.name for one in layers)
        raise TargetError(f"{names} lose their channels together, and rules give them "
                          f"several amounts: {sorted(amounts)}")  # fmt: skip
    return steps[0]


def _check_not_named(layers: list[Selected], step: Shrink, reason: str) -> None:
    """A layer that is named, not just matched, has to be able to lose channels."""
    patterns = {*step.targets, *(rule.match for rule in step.rules if not rule.skip)}
    for one in layers:
        names = {name for site in one.storage.sites for name in (site.path, site.name)}
        named = sorted(patterns & names)
        if named:
            raise TargetError(
                f"{named[0]} is named and its channels cannot be removed: {reason}; {_advice(layers)}"
            )


def _advice(layers: list[Selected]) -> str:
    """What to do about a named layer: to name all that go with it is enough where only targets lack."""
    out = [one for one in layers if one.step is None]
    if out and len(out) < len(layers) and not any(one.ruled_out for one in out):
        return f"name {', '.join(one.storage.name for one in out)} too, or leave it out"
    return "leave it out"


def _removed(
    work: Work, coupling: Coupling, chosen: Chosen, inputs: Inputs, step: Shrink, context: Context
) -> Tensor:
    """The labels of the units that go; of dead ones, with their constants moved into biases."""
    if step.dead:
        plain = plain_copy(work.model)
        found = storages(work.model)
        held = [one.sites[0].path for one in found if one.kind == "bias" and one.parametrization is not None]
        dead = dead_units(plain, coupling, [group for group, _ in chosen], inputs, held)
        for path, gain in dead.biases.items():
            _add_to_bias(work, coupling, path, gain)
        _check_dead(work, plain, coupling, dead.labels, inputs)
        return dead.labels
    with seeded(context):
        importance = unit_importance(
            work.model, coupling, step, context.task, seed=context.seed, device=context.device,
            progress=inside(context.progress, step.name),
        )  # fmt: skip
    ranked = []
    for group, resolved in chosen:
        if bool(importance[group.units].isnan().any()):
            raise TargetError(f"{group.layers[0]} has no norm whose scale could rank its channels: take "
                              "another importance, or skip it")  # fmt: skip
        ranked.append(rank(coupling, group, resolved, importance))
    removed = choose(coupling, ranked)
    if not len(removed) and step.threshold is None:
        least = min(len(one.units) for one in ranked)
        raise TargetError(
            f"{step.amount} {getattr(step, step.amount)} removes nothing: layers have from {least} units on, "
            f"and keep a multiple of {step.round_to} channels"
        )
    return removed


def _add_to_bias(work: Work, coupling: Coupling, path: str, gain: Tensor) -> None:
    layer = cast(nn.Linear, work.model.get_submodule(path))
    if takes_bias(layer):
        change = Change(path, "bias", output_channels(layer))
        apply_changes_(work.model, [change])
        work.changes += (change,)
        coupling.storages = {one.name: one for one in state(work.model)}
        weight = next(name for name, one in coupling.storages.items()
                      if any(site.name == f"{path}.weight" for site in one.sites))  # fmt: skip
        coupling.bind(f"{path}.bias", 0, coupling.axes[weight, 0])
    with torch.no_grad():
        layer.bias.add_(gain.to(layer.bias.device))


def _check_dead(work: Work, before: nn.Module, coupling: Coupling, labels: Tensor, inputs: Inputs) -> None:
    try:
        check_same(before, shrunk(work.model, remove(coupling, labels)), inputs, _LOSSLESS)
    except VerificationError as error:
        raise VerificationError(f"units without effect could not be removed without loss: {error}") from error


def _apply(
    work: Work, coupling: Coupling, removed: Tensor, inputs: Inputs, step: Shrink, context: Context
) -> None:
    removal = remove(coupling, removed)
    if not removal.kept:
        return
    with in_context(", ".join([*removal.kept][:3]) + ", ..." * (len(removal.kept) > 3)):
        if not step.dead:
            check_same(masked(work.model, removal), shrunk(work.model, removal), inputs)
    held = [one.parametrization for one in storages(work.model)]
    shared = [one[0].update for one in held if one is not None and isinstance(one[0], SharedWeight)]
    collected = sliced(work.collected(), removal)
    model = trained_model(context.task)
    attach_collected_(model, collected, update=shared[-1] if shared else "gradient")
    work.model, work.changes = model.to(context.device), collected.changes


def _report(coupling: Coupling, chosen: Chosen, skipped: Skipped, removed: Tensor) -> list[Touched]:
    rows = []
    counts = left_of(coupling, removed)
    for group, step in chosen:
        layers = (*group.layers, *group.carriers)
        for name, axis in (*group.axes, *((name, 0) for name in group.carriers)):
            before, after = counts[name, axis]
            detail = f"{before} -> {after} channels"
            others = [one for one in layers if one != name]
            detail += f", with {_and_others(others)}" if others else ""
            stay = [why for one in coupling.axes[name, axis].tolist() if (why := coupling.units.reason(one))]
            if stay:
                detail += f", {len(stay)} of them kept: {stay[0]}"
            if before == after and not step.dead and step.round_to > 1:
                detail += f" (rounded to {step.round_to})"
            rows.append(Touched(name, True, detail))
    carried = {one.name: one for one in rows if (one.name, 0) in coupling.carriers}
    rows = [one for one in rows if carried.get(one.name, one) is one]  # of several groups: the last one
    reasons: dict[str, dict[str, None]] = {}
    for name, reason in skipped:  # a tied weight may make channels along both of its dimensions
        if name not in carried:
            reasons.setdefault(name, {})[reason] = None
    rows += [Touched(name, False, "; ".join(some)) for name, some in reasons.items()]
    whole, left = macs(coupling, removed[:0]), macs(coupling, removed)
    asked = {step.macs for _, step in chosen if step.macs is not None}
    share = f" ({left / whole:.1%})" if whole else ""
    if whole and len(asked) == 1:
        share = (
            f": {100 * asked.pop():.1f} % of the multiply-accumulates asked, {100 * left / whole:.1f} % left"
        )
    return [*rows, Touched("multiply-accumulates", True, f"{whole:,.0f} -> {left:,.0f}{share}")]


def _and_others(names: list[str]) -> str:
    """Layers in a message, without a long list of them."""
    more = len(names) - 1
    return names[0] + (f" and {more} other{'s' * (more > 1)}" if more else "")
