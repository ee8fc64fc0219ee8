"""``tersor recipe``: the presets, and whether a file is a recipe."""

from __future__ import annotations

import click

from tersor.cli import console


@click.group()
def recipe() -> None:
    """List, show and check recipes."""


@recipe.command("list")
@click.option("--json", "as_json", is_flag=True, help="Names and descriptions as JSON on stdout.")
def list_recipes(as_json: bool) -> None:
    """List the presets."""
    with console.json_alone(as_json) as emit:
        from tersor.recipe import load_recipe, preset_names
        from tersor.report import Table

        found = [load_recipe(name) for name in preset_names()]
        rows = tuple((one.name, one.description) for one in found)
        console.show(Table("presets", ("name", "description"), rows, left=2))
        emit([{"name": one.name, "description": one.description} for one in found])


@recipe.command()
@click.argument("source", metavar="NAME|FILE")
@click.option("--set", "sets", multiple=True, metavar="STEP.FIELD=VALUE", help="Change it; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="The checked recipe as JSON on stdout.")
def show(source: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe as YAML on stdout, ready to be saved and changed."""
    with console.json_alone(as_json) as emit:
        from tersor.recipe import apply_sets, dump_recipe, load_recipe, recipe_text, recipe_to_dict

        found = apply_sets(load_recipe(source), sets)
        emit(recipe_to_dict(found))
        if not as_json:
            click.echo(dump_recipe(found) if sets else recipe_text(source)[1], nl=False)


@recipe.command()
@click.argument("source", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Its name and steps as JSON on stdout.")
def validate(source: str, as_json: bool) -> None:
    """Check a recipe; exit code 2 and the path of the mistake if it is wrong."""
    with console.json_alone(as_json) as emit:
        from tersor.recipe import load_recipe

        found = load_recipe(source)
        steps = [step.name for step in found.steps]
        console.say(f"{source} is a recipe: {found.name}, {' -> '.join(steps)}")
        emit({"valid": True, "name": found.name, "steps": steps})
