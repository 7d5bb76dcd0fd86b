"""Tables and pictures of which-etr.md from which-etr.json: python docs/results/which_etr_page.py

The prose of the page is written by hand; only what stands between its markers is replaced.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from etr import stats
from etr.files import atomic_write
from etr.plots.files import png
from etr.plots.style import End, finish, new_figure, objective_color, styled

HERE = Path(__file__).parent
LEARNING, MATCHED = "learning score", "entropy at 90% of grpo's score"
MEASURES = (LEARNING, "final score", "entropy at 50% of grpo's score", "entropy at 75% of grpo's score", MATCHED)
PLANE = ("bandit-spread", "bandit-near-tie", "noisy-light", "multi-mode-easy")
SHOWN = ("grpo", "grpo, eps 0.3", "etr", "etr_proportional", "etr_surprise")
NO_TASK = "random-half"  # its reward says nothing, so scores there are noise; it has a table of its own
SLACK = 0.01  # of learning score that an arm may lose against GRPO's best cell to count as equally fast


def cells(data: dict[str, Any], setting: str, measure: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(environment, arm) -> paired difference from grpo, with Holm's p over the whole table."""
    found = {
        (env, arm): dict(rows[measure]["minus grpo"])
        for env, result in data["environments"].items()
        if env != NO_TASK
        for arm, rows in result[setting]["arms"].items()
        if arm != "grpo" and rows[measure]["minus grpo"]["mean"] is not None
    }
    for cell, p in zip(found.values(), stats.holm([cell["p"] for cell in found.values()]), strict=True):
        cell["holm"] = p
    return found


def pooled(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Mean over environments of the paired differences, with a 95 % interval from their standard errors."""
    mean = sum(row["mean"] for row in rows) / len(rows)
    error = math.sqrt(sum(((row["high"] - row["low"]) / 3.92) ** 2 for row in rows)) / len(rows)
    return mean, mean - 1.96 * error, mean + 1.96 * error


def summary(data: dict[str, Any], setting: str) -> str:
    """Per arm and measure: pooled difference from grpo, and in how many environments it is above or below (Holm)."""
    names = ("learning score", "final score", "entropy at 50 %", "at 75 %", "at 90 % of GRPO's score")
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    tables = {measure: cells(data, setting, measure) for measure in MEASURES}
    for arm in [arm for arm in data["settings"]["arms"] if arm != "grpo"]:
        texts = []
        for measure in MEASURES:
            rows = [cell for (_, name), cell in tables[measure].items() if name == arm]
            mean, low, high = pooled(rows)
            up, down = (sum(r["holm"] < 0.05 and sign * r["mean"] > 0 for r in rows) for sign in (1, -1))
            texts.append(f"{1000 * mean:+.1f} [{1000 * low:+.1f}, {1000 * high:+.1f}] {up}↑ {down}↓ of {len(rows)}")
        lines.append(f"| `{arm}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def by_environment(data: dict[str, Any], measure: str) -> str:
    """Differences from grpo of the arms in question in every environment, at tuned settings."""
    arms = [arm for arm in data["settings"]["arms"] if arm != "grpo"]
    table = cells(data, "tuned", measure)
    lines = ["| environment | grpo | " + " | ".join(f"`{arm}`" for arm in arms) + " |", "|---" * (len(arms) + 2) + "|"]
    for env, result in data["environments"].items():
        if env == NO_TASK:
            continue
        base = result["tuned"]["arms"]["grpo"][measure]["iqm"]
        texts = []
        for arm in arms:
            cell = table.get((env, arm))
            star = "" if cell is None or cell["holm"] >= 0.05 else "*"
            texts.append("–" if cell is None else f"{1000 * cell['mean']:+.1f}{star}")
        lines.append(f"| {env} | {'–' if base is None else f'{base:.3f}'} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def frontier(data: dict[str, Any]) -> str:
    """Entropy at equal reward of each arm's best cell among those that learn as fast as GRPO's fastest."""
    gains: dict[str, list[float]] = {arm: [] for arm in data["settings"]["arms"]}
    for env, result in data["environments"].items():
        points = result["tuning"]
        fast = max(row["learning score"] for row in points["grpo"]) - SLACK
        most = {
            arm: max(
                (r["entropy"] for r in rows if r["learning score"] >= fast and r["entropy"] is not None), default=None
            )
            for arm, rows in points.items()
        }
        for arm, value in most.items():
            if env != NO_TASK and value is not None and most["grpo"] is not None:
                gains[arm].append(value - most["grpo"])
    head = "| arm | more entropy than GRPO, nats per token | in how many of the environments where it is as fast |"
    lines = [head, "|---|---|---|"]
    for arm, values in gains.items():
        if arm != "grpo" and len(values) > 2:
            mean = sum(values) / len(values)
            error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
            ends = f"[{mean - 1.96 * error:+.3f}, {mean + 1.96 * error:+.3f}]"
            lines.append(f"| `{arm}` | {mean:+.3f} {ends} | {sum(v > 0 for v in values)} of {len(values)} |")
    return "\n".join(lines)


def no_task(data: dict[str, Any]) -> str:
    """Entropy that is left after training on random rewards, every arm at GRPO's cell."""
    rows = data["environments"][NO_TASK]["same cell"]["arms"]
    lines = ["| arm | entropy after training | minus GRPO's |", "|---|---|---|"]
    for arm, found in sorted(rows.items(), key=lambda item: item[1]["final entropy"]["iqm"]):
        row, d = found["final entropy"], found["final entropy"]["minus grpo"]
        lines.append(f"| `{arm}` | {row['iqm']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | "
                     f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] |")  # fmt: skip
    return "\n".join(lines)


def sketch(data: dict[str, Any]) -> str:
    """Score and entropy of every arm at each step of plain SGD."""
    steps = list(data["sketch"])
    head = [f"step {step}: {what}" for step in steps for what in ("final score", "final entropy", "entropy at 90 %")]
    lines = ["| arm | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for arm in data["settings"]["arms"]:
        texts = []
        for step in steps:
            rows = data["sketch"][step]["arms"][arm]
            for what in ("final score", "final entropy", MATCHED):
                row = rows[what]
                texts.append("–" if row["iqm"] is None else f"{row['iqm']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        lines.append(f"| `{arm}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


@styled
def forest(data: dict[str, Any]) -> Figure:
    """Pooled differences from grpo at tuned settings: reward on the left, entropy at matched reward on the right."""
    figure = new_figure(9.0, 4.4)
    arms = [arm for arm in data["settings"]["arms"] if arm != "grpo"]
    for place, (axes, measure) in enumerate(zip(figure.subplots(1, 2), (LEARNING, MATCHED), strict=True)):
        table = cells(data, "tuned", measure)
        for y, arm in enumerate(reversed(arms)):
            rows = [cell for (_, name), cell in table.items() if name == arm]
            mean, low, high = pooled(rows)
            color = objective_color("etr") if arm.startswith("etr") else objective_color("grpo")
            axes.plot([1000 * low, 1000 * high], [y, y], color=color)
            axes.plot([1000 * mean], [y], "o", color=color)
        axes.axvline(0, color="0.6", lw=0.8)
        axes.set(yticks=range(len(arms)), yticklabels=list(reversed(arms)) if place == 0 else [])
        axes.set(title=("Learning score, minus GRPO's", "Entropy at equal reward, minus GRPO's")[place])
        axes.set(xlabel=("thousandths of the score", "thousandths of a nat per token")[place])
    n, seeds = len(data["environments"]) - 1, data["settings"]["seeds"]
    note = f"Mean over {n} environments, every arm tuned alike, paired over {seeds} seeds; bars: 95 % intervals."
    return finish(figure, note, {})


@styled
def plane(data: dict[str, Any]) -> Figure:
    """Mean path of the arms in the plane of entropy and score, at tuned settings."""
    figure = new_figure(9.0, 6.4)
    ends: dict[Any, list[End]] = {}
    envs = [env for env in PLANE if env in data["environments"]]
    for axes, env in zip(figure.subplots(2, 2).flat, envs, strict=False):
        ends[axes] = []
        for number, arm in enumerate(SHOWN):
            path = data["environments"][env]["tuned"]["path"][arm]
            color = f"C{number}"
            axes.plot(path["entropy"], path["score"], color=color)
            ends[axes].append(End(path["entropy"][-1], path["score"][-1], arm, color))
        axes.invert_xaxis()
        axes.set(title=env, xlabel="entropy (nats per token)", ylabel="score")
    note = "Mean over seeds; training goes from left to right. Higher at one place: more reward for the entropy."
    return finish(figure, note, ends)


def main() -> None:
    data = json.loads((HERE / "which-etr.json").read_text())
    page = HERE / "which-etr.md"
    text = page.read_text()
    parts = {
        "tuned": summary(data, "tuned"),
        "same": summary(data, "same cell"),
        "learning": by_environment(data, LEARNING),
        "matched": by_environment(data, MATCHED),
        "frontier": frontier(data),
        "no task": no_task(data),
        "sketch": sketch(data),
    }
    for name, table in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table}\n\n{end}{rest.partition(end)[2]}"
    atomic_write(page, text)
    for name, figure in (("forest", forest(data)), ("plane", plane(data))):
        atomic_write(HERE / f"which-etr-{name}.png", png(figure))


if __name__ == "__main__":
    main()
