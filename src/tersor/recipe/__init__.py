"""Recipes as YAML: the same classes as :mod:`tersor.spec`, field by field."""

from tersor.recipe.load import (
    apply_sets,
    dump_recipe,
    load_recipe,
    parse_recipe,
    preset_names,
    preset_text,
    recipe_text,
)
from tersor.recipe.schema import recipe_from_dict, recipe_to_dict

__all__ = [
    "apply_sets",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "preset_names",
    "preset_text",
    "recipe_from_dict",
    "recipe_text",
    "recipe_to_dict",
]
