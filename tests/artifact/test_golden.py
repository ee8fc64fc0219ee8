"""Bytes that were written once are read for ever, and written the same way again.

A change of the format that fails here needs a new version byte, or a feature flag, and a new file.
"""

from pathlib import Path

import pytest

from tersor.artifact.forms import digest
from tersor.artifact.io import Reader, write

FOLDER = Path(__file__).parents[1] / "golden"
SECTIONS = {
    "aliases": {"tied": "fc.weight"},
    "points": b"points",
    "structure": b"structure",
    "attachments": {"a": b"", "b": bytes(300)},
}


@pytest.mark.parametrize("name, sections", [("forms", {}), ("sections", SECTIONS)])
def test_golden_bytes(tmp_path, small, name, sections):
    golden = FOLDER / f"{name}.tersor"
    with Reader(golden) as reader:
        assert {name: digest(tensor) for name, tensor in reader.items()} == {
            name: digest(tensor) for name, tensor in small.items()
        }
        for section, content in sections.items():
            assert getattr(reader, section) == content
    write(tmp_path / "x", small.items(), **sections)
    assert (tmp_path / "x").read_bytes() == golden.read_bytes()
