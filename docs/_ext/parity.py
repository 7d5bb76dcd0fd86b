"""Tables of the page on other projects, from the lists that the tests compare by (`tests/peers`)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import etr

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from peers import load, ours
from peers.deviations import rows

Table = tuple[list[str], list[list[str]]]
NAMES = {"verl": "verl", "trl": "TRL"}


def deviations() -> Table:
    """Every declared difference: whose, where, what each does, why."""
    return ["whose", "where", "there", "here", "why"], [list(row) for row in rows()]


def missing() -> Table:
    """What a peer has and etr has not."""
    lines = []
    for key, reason in ours.NOT_HERE.items():
        peer, kind, name = key.split("-", 2)
        lines.append([NAMES[peer], kind, f"`{name}`", reason])
    return ["whose", "kind", "name", "why"], lines


def compared() -> Table:
    """Every setting of a peer that is compared, and what etr calls it."""
    return ["whose", "kind", "its name", "here"], list(_compared())


def _compared() -> Iterator[list[str]]:
    for peer, name in NAMES.items():
        title = f"{name} {load(peer)['versions'][peer]}"
        for kind, table in (("loss", ours.LOSSES), ("advantage", ours.ADVANTAGES)):
            for theirs, make in table[peer].items():
                correction = ours.CORRECTIONS.get(f"{peer}-{theirs}") if kind == "loss" else None
                extra = f", correction {settings(correction)}" if correction else ""
                yield [title, kind, f"`{theirs}`", described(make()) + extra]
        for theirs, correction in ours.WEIGHTS[peer].items():
            yield [title, "rollout correction", f"`{theirs}`", f"correction {settings(correction)}"]


def described(objective: etr.Objective) -> str:
    """Name and the fields that differ from their defaults."""
    usual = etr.get(objective.name) if objective.name in etr.list_objectives() else type(objective)()
    return f"`{objective.name}` {settings(objective, usual)}".strip()


def settings(value: object, usual: object | None = None) -> str:
    """The fields of a dataclass that differ from `usual` or from its defaults."""
    usual = type(value)() if usual is None else usual
    names = [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]
    changed = {name: getattr(value, name) for name in names if getattr(value, name) != getattr(usual, name)}
    return ", ".join(
        f"`{name}={one:.4g}`" if isinstance(one, float) else f"`{name}={one}`" for name, one in changed.items()
    )
