"""The page of a scorecard: one HTML file with every verdict, its interval and its line, and how the recipe learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etr.files import atomic_write
from etr.plots import caption, learning_dashboard, png
from etr.plots.style import QUIET, SMALL, finish, new_figure, styled
from etr.report.page import Picture, Section, render
from etr.toy.recorder import History
from etr.validate.scorecard import PAGE, Scorecard

COLORS = {"pass": "#0072B2", "fail": "#D55E00"}
LEFT, RIGHT = -2.0, 3.0  # shares of what is allowed that the picture shows; beyond them an arrow points on
Row = Mapping[str, Any]


def write_page(folder: Path, scorecard: Scorecard, histories: Mapping[str, Mapping[str, History]]) -> Path:
    """Write scorecard.html into a folder and return its path. Raises InputError if it cannot be written."""
    path = folder / PAGE
    atomic_write(path, render(sections(scorecard, histories), f"Scorecard of {scorecard.name}"))
    return path


def sections(scorecard: Scorecard, histories: Mapping[str, Mapping[str, History]]) -> list[Section]:
    """The parts of the page; histories: the toy runs by environment and arm."""
    picture = verdict_picture(scorecard.criteria)
    shown = [Section(headline(scorecard), _summary(scorecard), table=table(scorecard))]
    shown[0] = Section(shown[0].title, shown[0].text, [Picture(png(picture), caption(picture))], shown[0].table)
    if scorecard.failed:
        shown.append(Section("What to mend", "\n\n".join(scorecard.reasons())))
    pictures = [_curves(env, arms, scorecard.name) for env, arms in histories.items()]
    if pictures:
        shown.append(Section("Learning, each arm at its own best learning rate", figures=pictures))
    details = [(c["name"], _details(c)) for c in scorecard.criteria]
    origin = {"loss_hash": scorecard.loss_hash, "versions": scorecard.versions, "seeds": scorecard.seeds}
    origin |= {"recipe": scorecard.recipe, "sources": scorecard.sources}
    text = yaml.safe_dump(origin, sort_keys=False, allow_unicode=True)
    return [*shown, Section("Details", details=[*details, ("recipe, code and versions", text)])]


def headline(scorecard: Scorecard) -> str:
    """Passed or not, in a few words."""
    failed = len(scorecard.failed)
    return "Passed" if not failed else f"Not passed: {failed} of {len(scorecard.criteria)} criteria"


def _summary(scorecard: Scorecard) -> str:
    quick = " Made with --quick: too few seeds for a promotion." if scorecard.quick else ""
    return (
        f"Suite {scorecard.suite}, made {scorecard.made['at']} in {scorecard.made['seconds']:.0f} s, of the loss whose "
        f"code and fields have the hash {scorecard.loss_hash[:16]}….{quick}"
    )


def table(scorecard: Scorecard) -> tuple[list[str], list[list[str]]]:
    """Header and one row per criterion."""
    rows = [[c["name"], c["outcome"], c["text"] + _interval(c), c["line"]] for c in scorecard.criteria]
    return ["criterion", "verdict", "measured [95 % interval]", "line"], rows


def _interval(found: Row) -> str:
    """Ends of the interval as text, if it was sampled."""
    return "" if found["low"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"


def _details(found: Row) -> str:
    lines = [found["title"], found["text"], *(f"{what}: {result}" for what, result in found["details"])]
    return "\n".join(lines)


@styled
def verdict_picture(criteria: Sequence[Row]) -> Figure:
    """One line per criterion: the share of what is allowed that it takes, with its interval; beyond 1 it fails."""
    figure = new_figure(8.0, 1.2 + 0.36 * len(criteria))
    axes = figure.subplots()
    for y, found in enumerate(criteria):
        _line(axes, y, found)
    axes.axvline(1, color=QUIET, lw=1.2, ls=(0, (4, 3)))
    axes.set_yticks(range(len(criteria)), [found["name"] for found in criteria])
    axes.set(xlim=(LEFT, RIGHT), xlabel="share of what is allowed")
    axes.set_ylim(len(criteria) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    note = "Dot: measured, as a share of what the criterion allows; line: 95 % interval where it was sampled. "
    return finish(figure, f"{note}Right of the dashed line a criterion fails; arrows lead beyond the picture.")


def _line(axes: Axes, y: int, found: Row) -> None:
    if found["outcome"] not in COLORS:
        axes.annotate("not applicable", (0, y), va="center", fontsize=SMALL, color=QUIET)
        return
    color = COLORS[found["outcome"]]
    used = math.inf if found["used"] is None else found["used"]  # JSON has no infinity
    if found["used_low"] is not None:
        ends = [min(max(found[key], LEFT), RIGHT) for key in ("used_low", "used_high")]
        axes.plot(ends, [y, y], color=color, lw=2.2)
    marker = ">" if used > RIGHT else "<" if used < LEFT else "o"
    axes.plot(min(max(used, LEFT + 0.05), RIGHT - 0.05), y, marker, color=color, ms=7)


def _curves(env: str, arms: Mapping[str, History], name: str) -> Picture:
    named = {(name if arm == "recipe" and name not in arms else arm): history for arm, history in arms.items()}
    steps = next(iter(arms.values())).steps
    figure = learning_dashboard({arm: history.curves for arm, history in named.items()}, steps, title=env)
    return Picture(png(figure), caption(figure), env)
