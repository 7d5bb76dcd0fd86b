"""`etr list`, `etr show`, `etr check`: look at objectives and test them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

import etr
from etr import laws, plugins, unified
from etr.cli.card import draw_card
from etr.cli.options import console, print_table
from etr.errors import InputError, unknown
from etr.objective import NEEDS, Category, Objective
from etr.recipe import load_recipe
from etr.systems import SYSTEMS


def list_command(
    category: Category | None = None, needs: str | None = None, paper: str | None = None, systems: bool = False
) -> None:
    """List all objectives with their papers, plugins' too. Example: etr list --category entropy --needs clusters

    Args:
        category: Only what changes this first of all.
        needs: Only objectives that need this input, such as clusters; "nothing" for those that need none.
        paper: Only papers whose title or arXiv number contains this.
        systems: Instead, all systems of the field, and why some are not here.
    """
    if systems:
        rows = [[str(s.number), s.name, s.arxiv or "-", ", ".join(s.found) or s.reason] for s in SYSTEMS]
        print_table("Systems of the field", ["", "system", "paper", "here as, or why not"], rows, "Next: etr show NAME")
        return
    if needs not in (None, "nothing", *NEEDS):
        raise InputError(unknown("input", str(needs), (*NEEDS, "nothing")))
    rows = [_row(name) for name in etr.list_objectives() if _chosen(etr.get(name), category, needs, paper)]
    if not rows:
        raise InputError("no objective is like that; drop one of --category, --needs, --paper")
    header = ["name", "paper", "arXiv", "category", "needs", "evidence", "from"]
    if all(row[-1] == "etr" for row in rows):  # no plugin has any of them
        header, rows = header[:-1], [row[:-1] for row in rows]
    caption = "evidence: how the equation is known; 'reconstructed' means by this project. Next: etr show NAME"
    print_table("Objectives", header, rows, caption)


def _row(name: str) -> list[str]:
    objective = etr.get(name)
    paper, needed = objective.paper, ", ".join(sorted(objective.needs)) or "-"
    source = plugins.origin(type(objective))
    return [name, escape(paper.title), paper.arxiv or "-", objective.category, needed, paper.evidence, escape(source)]


def _chosen(objective: Objective, category: str | None, needs: str | None, paper: str | None) -> bool:
    title = f"{objective.paper.title} {objective.paper.arxiv}".lower()
    needed = needs is None or (needs in objective.needs if needs != "nothing" else not objective.needs)
    return category in (None, objective.category) and needed and (paper or "").lower() in title


def show(name: Annotated[Positional[str], arg(metavar="RECIPE")], png: str | None = None) -> None:
    """Show one recipe: equation, source, fields and defaults, what it needs. Example: etr show etr --png etr.png

    Args:
        png: Also draw its card into this file: region, gradient coefficient, a bandit learning.
    """
    recipe = load_recipe(name)
    objective = recipe.objective
    source = escape(f"from {plugins.origin(type(objective))}")
    console.print(f"[bold]{escape(recipe.name)}[/bold]  ({type(objective).__module__}, {source})\n")
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
    needed = ", ".join(sorted(objective.needs)) or "nothing further"
    console.print(f"Category: {objective.category}. Scope: {objective.scope}. Needs: {needed}.")
    for law, reason in objective.exceptions.items():
        console.print(f"Breaks the law '{law}' by design: {escape(reason)}.")
    console.print("\nThe four parts of its gradient (2509.04419) on a random off-policy batch, c = mask · A · π/π_ref:")
    console.print(escape(unified.table([objective], laws.random_batch(objective))), soft_wrap=True)
    if png is not None:
        draw_card(recipe, Path(png))
        console.print(f"Wrote {escape(png)}.")


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
