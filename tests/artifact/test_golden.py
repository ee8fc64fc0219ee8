"""Bytes that were written once are read for ever, and written the same way again.

A change of the format that fails here needs a new version byte, or a feature flag, and a new file.
"""

from pathlib import Path

import pytest

from tersor.artifact.forms import digest
from tersor.artifact.io import Reader, write
from tersor.artifact.sections import encode_changes, encode_points
from tersor.points import QuantPoint
from tersor.structure import Change

FOLDER = Path(__file__).parents[1] / "golden"
SECTIONS = {
    "aliases": {"tied": "fc.weight"},
    "points": b"points",
    "structure": b"structure",
    "attachments": {"a": b"", "b": bytes(300)},
}
POINTS = (
    QuantPoint("", "input", 0, scale=0.0078125, zero_point=128),
    QuantPoint("layer1.0.conv1", "conv", 0, bits=4, scale=0.10000000149011612),
    QuantPoint("layer1.0.conv2", "conv", 1, bits=16, signed=True, scale=2.0**-149, zero_point=-32768),
    QuantPoint("layer1.0.conv2", "add", 0),
)
CHANGES = (Change("layer1.0.conv1", "bias", 16), Change("layer1.0.norm1", "identity", 1))
ENCODED = {"points": encode_points(POINTS), "structure": encode_changes(CHANGES)}


@pytest.mark.parametrize("name, sections", [("forms", {}), ("sections", SECTIONS), ("points", ENCODED)])
def test_golden_bytes(tmp_path, small, name, sections):
    golden = FOLDER / f"{name}.tersor"
    with Reader(golden) as reader:
        assert {name: digest(tensor) for name, tensor in reader.items()} == {
            name: digest(tensor) for name, tensor in small.items()
        }
        for section, content in sections.items():
            stored = reader.section(section) if isinstance(content, bytes) else getattr(reader, section)
            assert stored == content
    write(tmp_path / "x", small.items(), **sections)
    assert (tmp_path / "x").read_bytes() == golden.read_bytes()


def test_golden_points_and_changes():
    with Reader(FOLDER / "points.tersor") as reader:
        assert reader.points == POINTS
        assert reader.changes == CHANGES
    with Reader(FOLDER / "forms.tersor") as reader:
        assert (reader.points, reader.changes) == ((), ())
