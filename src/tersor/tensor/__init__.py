"""Arithmetic on one tensor: no modules, no files."""
