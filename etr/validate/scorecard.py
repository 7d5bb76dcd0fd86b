"""A scorecard: what the suite found about one recipe, made of one state of the code, as a file that can be checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import atomic_write, read_json, to_json
from etr.provenance import hash_of, loss_fields, loss_sources
from etr.recipe import Recipe
from etr.validate.base import CRITERIA, ORDER, OUTCOMES

SUITE = "1"  # changes whenever a criterion, a line or a seed does
FILE, PAGE = "scorecard.json", "scorecard.html"


@dataclass(frozen=True)
class Scorecard:
    """What `etr validate` found.

    recipe: `Recipe.as_dict()`; criteria: one mapping per criterion, with name, outcome, required, text, value, low,
    high, failing and details; loss_hash, sources: of `etr.provenance`; fields: `loss_fields` of it; suite: version of
    the criteria; quick: with fewer seeds than a promotion asks for; versions: of what it ran on; seeds: first number
    and count by use; made: date and seconds.
    """

    recipe: dict[str, Any]
    name: str
    criteria: tuple[Mapping[str, Any], ...]
    loss_hash: str
    sources: dict[str, str]
    fields: dict[str, Any]
    suite: str
    quick: bool
    versions: dict[str, str]
    seeds: dict[str, Any]
    made: dict[str, Any]

    @property
    def failed(self) -> list[str]:
        """Names of the criteria that stand in the way: failures, and required ones that could not be measured."""
        return [c["name"] for c in self.criteria if c["outcome"] not in ("pass", "not applicable") or self._missing(c)]

    @property
    def passed(self) -> bool:
        """Did it pass every criterion that could be measured, the required ones among them?"""
        return not self.failed

    @staticmethod
    def _missing(found: Mapping[str, Any]) -> bool:
        return bool(found["required"]) and found["outcome"] != "pass"

    def reasons(self) -> list[str]:
        """One sentence for each failure."""
        by_name = {found["name"]: found for found in self.criteria}
        return [f"{name}: {by_name[name]['failing']} ({by_name[name]['text']})" for name in self.failed]

    def mismatches(self, recipe: Recipe) -> list[str]:
        """Sentences why the scorecard does not stand for this recipe and the code at hand; empty if it does.

        Whether it passed is another question. Raises InputError as `etr.provenance.loss_sources` does.
        """
        sources, fields = loss_sources(recipe), loss_fields(recipe)
        again = f"run `etr validate {self.name}` again"
        found = []
        if self.suite != SUITE:
            found.append(f"the scorecard is of suite {self.suite}, but this is etr's suite {SUITE}; {again}")
        if self.quick:
            found.append(f"the scorecard was made with --quick, which has too few seeds; {again} without it")
        found += [f"{text}; {again}" for text in self._not_of_the_suite()]
        then, now = dict(_flat(self.fields)), dict(_flat(fields))
        found += [
            f"{key} is {now.get(key)!r}, but was {then.get(key)!r} when the scorecard was made; {again}"
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key)
        ]
        changed = sorted(key for key in {*self.sources, *sources} if self.sources.get(key) != sources.get(key))
        if changed:
            found.append(f"the code of the loss has changed since ({', '.join(changed)}); {again}")
        if self.loss_hash != hash_of(self.sources, self.fields):
            found.append(f"the scorecard's hash is not that of its own sources and fields: it was edited; {again}")
        return found

    def _not_of_the_suite(self) -> list[str]:
        """What `etr validate` would not have written as criteria."""
        names = [c["name"] for c in self.criteria]
        if names != list(ORDER):
            what = ", ".join(sorted({*names} ^ {*ORDER})) or "their order or number"
            return [f"the scorecard's criteria are not those of the suite ({what})"]
        return [
            f"criterion '{c['name']}' has outcome {c['outcome']!r} and required {c['required']!r}, which the suite "
            "does not give: it was edited"
            for c in self.criteria
            if c["outcome"] not in OUTCOMES or c["required"] is not CRITERIA[c["name"]].required
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"suite": self.suite, "name": self.name, "passed": self.passed, "failed": self.failed, **vars(self)}


def write_scorecard(folder: Path, scorecard: Scorecard) -> Path:
    """Write scorecard.json into a folder, in one step; returns its path. Raises InputError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use '{folder}' for a scorecard ({error.strerror}); choose another --out") from error
    atomic_write(folder / FILE, to_json(scorecard.as_dict(), indent=2) + "\n")
    return folder / FILE


def read_scorecard(path: Path) -> Scorecard:
    """The scorecard in a file, or in a folder that has one.

    Raises InputError if it is missing, broken, or says that it passed when its criteria say otherwise.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no scorecard '{file}'; make one with `etr validate RECIPE`")
    data = read_json(file)
    try:
        names = [name for name in Scorecard.__dataclass_fields__ if name != "criteria"]
        found = Scorecard(**{name: data[name] for name in names}, criteria=tuple(data["criteria"]))
        claimed, passed = data["passed"], found.passed
        reasons = found.reasons()
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{file}' is no scorecard ({error}); make one with `etr validate RECIPE`") from error
    if not found.criteria or claimed != passed:
        what = "; ".join(reasons) or "it has no criteria"
        raise InputError(f"'{file}' says passed: {json.dumps(claimed)}, which its criteria do not bear out ({what})")
    return found


def default_folder(name: str) -> Path:
    """Where `etr validate` puts the scorecard of a recipe of that name.

    >>> default_folder("my etr").as_posix()
    'runs/scorecards/my-etr'
    """
    return Path("runs/scorecards") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "recipe")


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings by dotted name."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return pairs
