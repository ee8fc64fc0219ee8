"""Run a recipe from a task to a verified file."""
