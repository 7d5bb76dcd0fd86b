"""`etr list`, `etr show`, `etr check`: look at objectives and test them."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

import etr
from etr import laws
from etr.cli.options import console, print_table
from etr.errors import InputError
from etr.recipe import load_recipe
from etr.registry import objective_class


def list_command() -> None:
    """List all objectives with their papers. Example: etr list"""
    rows = []
    for name in etr.list_objectives():
        cls = objective_class(name)
        rows.append([name, cls.paper.title, cls.paper.arxiv or "-", cls.paper.evidence])
    caption = "evidence: how the equation is known; 'reconstructed' means by this project. Next: etr show NAME"
    print_table("Objectives", ["name", "paper", "arXiv", "evidence"], rows, caption)


def show(name: Annotated[Positional[str], arg(metavar="RECIPE")]) -> None:
    """Show one recipe: equation, source, fields and defaults, what it needs. Example: etr show etr"""
    recipe = load_recipe(name)
    objective = recipe.objective
    console.print(f"[bold]{escape(recipe.name)}[/bold]  ({type(objective).__module__})\n")
    text = sys.modules[type(objective).__module__].__doc__ or type(objective).__doc__ or ""
    console.print(escape(text.strip()), soft_wrap=True)
    console.print()
    rows = [[f.name, str(getattr(objective, f.name))] for f in dataclasses.fields(objective)]
    rows += [[f"optimizer.{k}", str(v)] for k, v in dataclasses.asdict(recipe.optimizer).items()]
    print_table("Fields (change them with --set field=value)", ["field", "value"], rows)
    reduction = objective.reduces_to
    if reduction is not None:
        fields = ", ".join(f"{k}={v}" for k, v in reduction.fields.items())
        console.print(f"Equals [bold]{reduction.parent}[/bold] at {escape(fields)}.")
    console.print(f"Scope: {objective.scope}. Needs: {', '.join(sorted(objective.needs)) or 'nothing further'}.")
    for law, reason in objective.exceptions.items():
        console.print(f"Breaks the law '{law}' by design: {escape(reason)}.")


def check(target: Annotated[Positional[str], arg(metavar="RECIPE")]) -> None:
    """Run the laws of objectives on one: a registered name, a YAML file, module:Class or path/to/file.py:Class.

    Example: etr check my_file.py:Mine
    """
    objective = load_recipe(target).objective
    verdicts = laws.check(objective)
    colours = {"holds": "green", "broken": "red", "excepted": "yellow"}
    rows = [[laws.title(v.law), f"[{colours[v.outcome]}]{v.outcome}[/]", escape(v.detail)] for v in verdicts]
    print_table(f"Laws of {target}", ["law", "outcome", "detail"], rows)
    broken = [v.law for v in verdicts if v.outcome == "broken"]
    if broken:
        raise InputError(
            f"{target} breaks {len(broken)} of {len(verdicts)} laws: {', '.join(broken)}; mend the objective, or "
            "declare the law in its `exceptions` with the reason"
        )


COMMANDS = {"list": list_command, "show": show, "check": check}
