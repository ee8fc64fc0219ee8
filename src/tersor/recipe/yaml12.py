"""PyYAML with the plain scalars of YAML 1.2 (core schema), and without keys that come twice.

PyYAML reads YAML 1.1, where ``1e-3`` is a string, ``no`` is false, ``010`` is eight and ``1:30`` is ninety.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_SCALARS = (("null", _NULL, "~nN"), ("bool", _BOOL, "tTfF"), ("int", _INT, "-+0123456789"),
            ("float", _FLOAT, "-+0123456789."))  # fmt: skip


class RecipeLoader(yaml.SafeLoader):
    """Safe, YAML 1.2 scalars; no tags, no merge keys, no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML, but a tag is an error (there ``!!bool x`` ends in a KeyError)."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise yaml.composer.ComposerError(None, None, f"{tag} has no place in a recipe", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in PyYAML, but a key that comes twice is an error (there the last one wins, silently)."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a name has to be a word", key.start_mark)
            if key.value in first:
                problem = f"{key.value!r} is given twice, first in line {first[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            first[key.value] = key.start_mark.line + 1
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Decimal: a leading zero is no octal."""
        return int(self.construct_scalar(node))


class RecipeDumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would not read back as the string that it is."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never ``&id001``: recipes are for reading."""
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Left to itself PyYAML writes U+0085 and its like as they are, and reads them back as a space.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"')


# PyYAML shares this table with the class it comes from until it is set anew.
RecipeLoader.yaml_implicit_resolvers = {}
RecipeDumper.yaml_implicit_resolvers = {
    first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _name, _pattern, _firsts in _SCALARS:
    for _class in (RecipeLoader, RecipeDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_firsts))
RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, [""])
RecipeLoader.add_constructor("tag:yaml.org,2002:int", RecipeLoader.construct_int)
RecipeDumper.add_representer(str, _represent_str)
