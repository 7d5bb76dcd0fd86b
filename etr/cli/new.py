"""`etr new` and `etr plugins`: packages that bring objectives, environments, tasks and engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from etr import plugins
from etr.cli.options import console, print_table
from etr.errors import InputError
from etr.new import KINDS, Kind, create, names_in

COLOURS = {"loaded": "green", "failed": "red", "switched off": "yellow"}
FIRST_LOOK = {
    "objective": "etr check {objective}",
    "environment": "etr toy --env {environment}",
    "task": "etr train --task {task} --model tiny-random --steps 2 --eval-items 0",
    "engine": "etr train --engine {engine} --model tiny-random --task copy --steps 2 --eval-items 0",
}


def new(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    at: Path = Path("."),
    kind: Annotated[tuple[Kind, ...], arg(metavar="KIND ...")] = ("objective",),
) -> None:
    """Make a package of your own: an objective (or more) with its tests, which etr finds once it is installed.

    Example: etr new my_method, then cd my_method and pip install --no-deps --no-build-isolation -e .

    Several kinds: etr new my_world --kind environment task --at ~/work

    Args:
        name: Name of the package and of its objective: small letters, digits and underscores.
        at: Folder in which the package gets a folder of its own.
        kind: What it brings: objective, environment, task, engine, or several of them.
    """
    if not kind:
        raise InputError(f"--kind got nothing; give one or several of {', '.join(KINDS)}")
    folder, names = create(name, at, kind), names_in(name)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        console.print(f"  {path}", markup=False, soft_wrap=True)
    lines = [
        f"cd {folder}",
        "python -m pip install --no-deps --no-build-isolation -e .",
        "python -m pytest",
        *(FIRST_LOOK[one].format(**names) for one in kind),
    ]
    console.print("Next:\n" + "\n".join(f"  {line}" for line in lines), markup=False, soft_wrap=True)


def plugins_command() -> None:
    """List the installed plugins: their packages and versions, what each brings, and why one could not be loaded."""
    found = plugins.load()
    if not found:
        console.print("No plugin is installed. To make one: etr new my_method")
        return
    rows = [[escape(p.name), escape(p.source), f"[{COLOURS[p.state]}]{p.state}[/]", escape(_brings(p))] for p in found]
    caption = f"{plugins.VARIABLE}=none, or names with commas between, leaves plugins out"
    print_table("Plugins", ["plugin", "package", "state", "brings"], rows, caption)


def _brings(plugin: plugins.Plugin) -> str:
    things = ", ".join(f"{kind} {name}" for kind, name in plugins.brought(plugin))
    return plugin.error or things or ("nothing" if plugin.state == "loaded" else "-")


COMMANDS = {"new": new, "plugins": plugins_command}
