"""What comes out: measured numbers as plain data. Nothing here computes or prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

Verdict = Literal["reference", "worse", "no difference seen", "better", "not tested"]


@dataclass(frozen=True)
class Score:
    """The mean score over a loader, in the score's own unit, with its 95 % interval.

    ``low`` and ``high`` are None for a metric that no sample has alone. ``per_sample`` (n,) stays out of
    reports. ``order`` is a checksum of the samples in the order they came.
    """

    value: float
    low: float | None
    high: float | None
    samples: int
    method: str
    per_sample: NDArray[Any] | None = field(default=None, repr=False, compare=False)
    order: int | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Comparison:
    """Artifact against baseline on the same samples, by a paired test.

    drop -- how much worse the artifact is, in the score's unit (negative: better).
    low, high -- 95 % interval of the drop; None for a metric without samples.
    p_value -- of no difference (two-sided).
    resolution -- the smallest drop that this many samples can tell from none (5 % level, 80 % power).
    """

    drop: float
    low: float | None
    high: float | None
    p_value: float | None
    test: Literal["mcnemar", "bootstrap", "none"]
    resolution: float | None
    note: str = ""


@dataclass(frozen=True)
class LedgerRow:
    """Where the bytes of one tensor (or one section of the file) went.

    The row of the container itself has the parts head, index and checksums.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    method: str
    levels: int
    parts: dict[str, int]  # bytes by part: codes, tables, codebook, scales, zero_points, mask, values, header

    @property
    def size_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Ledger:
    """Every byte of a file: the rows add up to ``file_bytes`` exactly."""

    rows: tuple[LedgerRow, ...]
    file_bytes: int


TEACHER = "(teacher)"  # how names begin in a record that tell of who taught a training, not of a tensor
MEASURING = "(measuring)"  # in the place of a step's name: what comes after the last one
OF_ALL = "(all)"  # in the place of a tensor's name: what is said of all that a step touched together


@dataclass(frozen=True)
class Touched:
    """What a step did to one tensor, or why it did nothing; named :data:`OF_ALL`, what it did altogether."""

    name: str
    applied: bool
    detail: str


@dataclass(frozen=True)
class StageRecord:
    """The model after one step of the recipe, written as a file of its own.

    validation -- its score on the validation data, if there is any.
    touched -- every parameter that the step looked at: what was done, or why it was skipped; and who taught
        its training, or why nobody did.
    """

    step: str
    kind: str
    size_bytes: int
    validation: float | None
    seconds: float
    touched: tuple[Touched, ...]


@dataclass(frozen=True)
class LayerRecord:
    """One tensor of the file: what was done to it and what it costs."""

    name: str
    shape: tuple[int, ...]
    steps: tuple[str, ...]
    sparsity: float
    levels: int
    size_bytes: int
    dense_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file for each weight of the tensor."""
        return 8 * self.size_bytes / max(prod(self.shape), 1)


@dataclass(frozen=True)
class TrialRecord:
    """One file that a search made.

    measured_drop -- by the labels of the half of the validation data that trials are chosen on; drop -- what
        is expected by them, by the probabilities of both models and by how far the outputs moved;
        verdict_drop -- the same on the other half. inside -- the budget, by the expected drop; front -- no
        other trial has fewer bytes and a smaller one. latency -- by that of the uncompressed model, where
        that is looked for and the file runs; it takes then the place of bytes. chosen -- whether it was
        handed back.
    """

    steps: str
    size_bytes: int
    drop: float
    measured_drop: float
    verdict_drop: float
    inside: bool
    front: bool
    seconds: float
    latency: float | None = None
    chosen: bool = False

    @property
    def cost(self) -> float:
        """What was to be least: the latency where that is looked for, else the bytes."""
        return self.size_bytes if self.latency is None else self.latency


@dataclass(frozen=True)
class SearchRecord:
    """What a search looked for, and on what grounds it chose.

    allowed -- the greatest drop, in the score's unit, or the most bytes. missed_by -- by how much the verdict
        misses it, in the same unit; 0 where the budget is met. in_the_way -- then the tensors that lose most,
        by the estimate, worst first. note -- what the validation data can and cannot tell.
    """

    budget: dict[str, Any]
    allowed: float
    missed_by: float
    validation_samples: int
    note: str
    in_the_way: tuple[str, ...]
    trials: tuple[TrialRecord, ...]

    @property
    def met(self) -> bool:
        """Whether the budget is met."""
        return self.missed_by == 0


@dataclass(frozen=True)
class StepBlame:
    """What one step of a recipe cost and brought, all tensors together.

    trains -- whether a training belongs to it. bytes_before, bytes_after -- of the model as a file; before
        the first step its dense bytes. score_before, score_after -- on the validation data; ``lost``: how
        much worse the latter is. None without validation data.
    """

    step: str
    kind: str
    trains: bool
    bytes_before: int
    bytes_after: int
    score_before: float | None
    score_after: float | None
    lost: float | None


@dataclass(frozen=True)
class TensorBlame:
    """What one tensor of a file loses and saves.

    step -- the last one that made it smaller. saved_bytes -- dense bytes less those in the file.
    lost -- by how much the score is better, in its own unit, with this tensor alone put back;
        ``low`` and ``high`` its 95 % interval, by the paired test. regained -- by how much the outputs are
        then nearer to those of the trained model (:func:`tersor.measure.outputs.output_change`). None where
        that cannot be told: then ``why`` says it.
    skip, relax -- rules to add to that step, as YAML: leave the tensor alone, or be more careful with it;
        "" where there is none.
    """

    name: str
    step: str
    size_bytes: int
    saved_bytes: int
    lost: float | None = None
    low: float | None = None
    high: float | None = None
    regained: float | None = None
    why: str = ""
    skip: str = ""
    relax: str = ""


@dataclass(frozen=True)
class BlameRecord:
    """Which steps and which tensors of a result lost its score, and which saved its bytes.

    put_back -- the state that single tensors were put back to, in words; "" if none was. trained_since -- the
        steps after it that train: the other tensors have learned to go with what this one has become.
    score, change -- of the file, on ``samples`` of validation data: its score, and how far its outputs are
        from the trained model's. missing -- why nothing could be put back; "" if it could.
    tensors -- the worst first.
    """

    put_back: str
    trained_since: tuple[str, ...]
    score: float
    change: float | None
    samples: int
    steps: tuple[StepBlame, ...]
    tensors: tuple[TensorBlame, ...]
    missing: str = ""


@dataclass(frozen=True)
class PlannedTime:
    """How long one part of a run will take, on this machine and as busy as it is now.

    part -- the name of a step, or :data:`MEASURING`: the file is written, and file and original are scored.
    seconds -- an estimate; None where the data have no length.
    basis -- what was timed for it, in words.
    """

    part: str
    seconds: float | None
    basis: str


@dataclass(frozen=True)
class StoredTensor:
    """How one file holds a tensor.

    form -- ``raw``, ``masked``, ``codebook`` or ``affine``.
    levels -- how many values its codes can name, 0 without codes.
    bits -- of a code, or of a value that is stored as it is.
    """

    form: str
    shape: tuple[int, ...]
    dtype: str
    levels: int
    bits: int
    sparsity: float
    size_bytes: int


@dataclass(frozen=True)
class ComparedFile:
    """One of several files of a model: its score, and whether that is another than the reference's.

    path -- None: the trained model itself. runtime -- where it ran, in words; None: in PyTorch.
    comparison -- with the reference; None for the reference. p_value -- of that comparison, corrected for the
        number of files compared.
    tensors -- by name; empty for what was exported to a runtime. rest_bytes -- what no tensor takes.
    """

    path: Path | None
    runtime: str | None
    size_bytes: int
    score: Score
    comparison: Comparison | None
    p_value: float | None
    verdict: Verdict
    tensors: Mapping[str, StoredTensor]
    rest_bytes: int


@dataclass(frozen=True)
class FileComparison:
    """Files of one model side by side, the reference first; ``data`` is what they were scored on."""

    task: str
    data: Literal["test", "validation"]
    dense_bytes: int
    files: tuple[ComparedFile, ...]


@dataclass(frozen=True)
class SensitivityRow:
    """What one candidate of one tensor, or one width of one activation, does to the outputs.

    name -- of the tensor, or of the point in words. size_bytes -- of the tensor in the file; None for
        activations. estimated -- the change of the outputs to second order; change -- as measured, with
        this one thing changed; drop -- of the score then, in its own unit (negative: better).
    """

    name: str
    candidate: str
    size_bytes: int | None
    estimated: float
    change: float | None = None
    drop: float | None = None

    @property
    def family(self) -> str:
        """What its candidate is one of: ``bits``, ``values``, ``activation-bits``."""
        return self.candidate.partition(" ")[0]


@dataclass(frozen=True)
class SensitivityRecord:
    """How much each tensor and each activation of a model may be changed, estimated and measured.

    correlations -- Spearman's, of the estimated with the measured change, over all rows (``all``) and by
        family; None where it does not exist. Rows that change nothing take no part. missing -- what could
        not be looked at, and why. baseline -- the score of the model as it is, on the data of the measured
        rows; None where nothing was measured.
    """

    rows: tuple[SensitivityRow, ...]
    correlations: dict[str, float | None]
    baseline: Score | None = None
    missing: dict[str, str] = field(default_factory=dict)
