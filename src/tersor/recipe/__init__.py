"""Recipes as YAML: the same classes as :mod:`tersor.spec`, field by field."""
