"""The report's coloured tokens: every number is there, colours mean what the legend says, and can be told and read."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from test_plot_style import VISION, lab

from etr.errors import InputError
from etr.plots.style import contrast_with_white
from etr.report import collect, write_report
from etr.report.tokens import MOST_TOKENS, RECORDS, choose, greatest, labels, marks
from etr.runs import RunFolder

NASTY = "<script>\"'&</pre>{{ 1 }}"
CSS = files("etr.report").joinpath("page.css").read_text(encoding="utf-8")


def completion(n: int = 3, **changes: Any) -> dict[str, Any]:
    columns = {"log_prob": -0.5, "entropy": 0.7, "ratio": 1.1, "coefficient": -0.25, "clipped": False}
    known = {"reward": 1.0, "advantage": -0.6, "finished": True, "tokens": n, "text": [f" w{i}" for i in range(n)]}
    return {**known, **{name: [value] * n for name, value in columns.items()}, **changes}


def row(step: int, *completions: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "prompt": "2 + 2?", "answer": "4", "completions": list(completions or [completion()])}


def run(path: Path, rows: list[dict[str, Any]]) -> Path:
    config = {"kind": "llm", "recipe": {"name": "etr"}, "settings": {"model": "tiny", "task": "sums"}}
    with RunFolder.create(path, config) as folder:
        folder.append("samples.jsonl", rows)
    return path


class Tokens(HTMLParser):
    """The coloured tokens of a page, (marks, numbers, text), and its radio buttons."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.buttons: list[dict[str, str | None]] = []
        self.labels: list[str | None] = []
        self.inside: dict[str, str | None] | None = None
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag != "script" and not any(name.startswith("on") for name in values)
        if tag == "i" and "data-n" in values:
            self.inside, self.text = values, ""
        elif tag == "input":
            self.buttons.append(values)
        elif tag == "label":
            self.labels.append(values["for"])

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "i" and self.inside is not None:
            self.found.append((self.inside["class"] or "", self.inside["data-n"] or "", self.text))
            self.inside = None


def page(folder: Path) -> Tokens:
    return Tokens(write_report(folder, collect(folder)))


def test_every_token_has_its_text_its_numbers_and_its_colours(tmp_path: Path) -> None:
    one = completion(
        2, text=[NASTY, "\n"], log_prob=[-3.0, -0.01], entropy=[1.5, 0.0], ratio=[0.7, 1.0], coefficient=[0.0, 2.0],
        clipped=[True, False],
    )  # fmt: skip
    found = page(run(tmp_path, [row(3, one, completion(1))])).found
    assert found == [
        ("e3 l3 r-3 x", "c +0 (clipped), p 0.0498, log p −3, ratio 0.7, entropy 1.5 nats", NASTY),
        ("c4", "c +2, p 0.99, log p −0.01, ratio 1, entropy 0 nats", "↵\n"),
        ("c-1 e2 l1 r2", "c −0.25, p 0.607, log p −0.5, ratio 1.1, entropy 0.7 nats", " w0"),
    ]


def test_steps_and_measures_are_chosen_without_scripts(tmp_path: Path) -> None:
    found = page(run(tmp_path, [row(1), row(1), row(5)]))
    groups: dict[str, list[bool]] = {}
    for button in found.buttons:
        assert button["type"] == "radio"
        groups.setdefault(str(button["name"]), []).append("checked" in button)
    assert sorted(groups.values()) == [[False, False, True], [True, False, False, False]]  # the last step, c
    assert found.labels == [button["id"] for button in found.buttons]  # each right after its button, as the CSS asks
    assert labels([row(1), row(1), row(5)]) == ["1 · 1", "1 · 2", "5"]


def test_two_runs_on_one_page_choose_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, [row(1)])
    found = page(tmp_path)
    ids = [button["id"] for button in found.buttons]
    assert len(ids) == len(set(ids)) == 10 and len({button["name"] for button in found.buttons}) == 4


@pytest.mark.parametrize(
    ("coefficient", "shade"), [(1.0, "c4"), (0.51, "c3"), (0.01, "c1"), (-1e-9, "c-1"), (-0.5, "c-2"), (0.0, "")]
)
def test_shades_of_the_coefficient(coefficient: float, shade: str) -> None:
    """A quarter of the scale each, and anything but 0 has a colour."""
    assert marks(coefficient, 1.0, 0.0, 0.0, 1.0, clipped=False) == shade
    assert marks(10 * coefficient, 10.0, None, 0.0, 1.0, clipped=False) == shade


def test_shades_of_the_other_measures_are_those_of_the_legend() -> None:
    def shade(entropy: float = 0.0, p: float = 1.0, ratio: float = 1.0) -> str:
        return marks(0.0, 1.0, entropy, math.log(p), ratio, clipped=False)

    assert [shade(entropy=value) for value in (0.09, 0.11, 0.6, 1.1, 9.0)] == ["", "e1", "e2", "e3", "e4"]
    assert [shade(p=value) for value in (0.91, 0.89, 0.49, 0.09, 0.009)] == ["", "l1", "l2", "l3", "l4"]
    assert [shade(ratio=value) for value in (1.009, 1.04, 1.06, 1.23, 1.66)] == ["", "r1", "r2", "r3", "r4"]
    assert [shade(ratio=value) for value in (0.995, 0.96, 0.94, 0.81, 0.6, 0.0)] == [
        "",
        "r-1",
        "r-2",
        "r-3",
        "r-4",
        "r-4",
    ]


def test_a_long_run_stays_a_small_page() -> None:
    rows = [row(step) for step in range(1, 501)]
    steps = [one["step"] for one in choose(rows)]
    assert len(steps) == RECORDS and steps[0] == 1 and steps[-1] == 500
    gaps = {b - a for a, b in pairwise(steps)}
    assert gaps <= {12, 13}
    wide = [row(step, completion(900)) for step in range(1, 501)]
    assert sum(len(c["text"]) for one in choose(wide) for c in one["completions"]) <= MOST_TOKENS
    assert len(choose(wide)) == MOST_TOKENS // 900
    assert len(choose([row(1, completion(MOST_TOKENS + 1))])) == 1
    assert greatest([row(1, completion(1, coefficient=[-3.0]))]) == 3.0
    assert greatest([row(1, completion(1, coefficient=[0.0]))]) == 1.0


def test_what_was_cut_off_is_said_and_missing_entropy_too(tmp_path: Path) -> None:
    one = completion(2, tokens=900, finished=False, entropy=[None, None], ratio=[None, 1.0])
    text = write_report(run(tmp_path, [row(1, one)]), collect(tmp_path)).read_text(encoding="utf-8")
    assert "reward 1, advantage −0.6, 900 tokens (the first 2 are shown), cut off by the length limit" in text
    assert "ratio 1&#34;" in text or 'ratio 1"' in text


@pytest.mark.parametrize("lines", ['{"step": 1}', '{"step": 1, "prompt": "", "answer": "", "completions": [{}]}'])
def test_broken_samples_are_named(tmp_path: Path, lines: str) -> None:
    folder = run(tmp_path, [])
    (folder / "samples.jsonl").write_text(lines + "\n")
    with pytest.raises(InputError, match=r"samples.jsonl' is incomplete.*; repeat the run with --overwrite"):
        collect(folder)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    folder = run(tmp_path, [row(1)])
    with (folder / "samples.jsonl").open("a") as stream:
        stream.write(json.dumps(row(2))[:40])
    assert len(page(folder).found) == 3


# ------------------------------------------------------------------------------------------------ colours


def theme(dark: bool) -> dict[str, str]:
    light, _, rest = CSS.partition("prefers-color-scheme: dark")
    return dict(re.findall(r"--([a-z]+\d?): (#[0-9a-f]+)", rest if dark else light))


def rgb(color: str) -> tuple[float, ...]:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    return tuple(int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))


def luminance(color: tuple[float, ...]) -> float:
    return 1.05 / contrast_with_white(color) - 0.05


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_colour(dark: bool) -> None:
    colors = theme(dark)
    ink = luminance(rgb(colors["ink"]))
    shades = [name for name in colors if re.fullmatch(r"(up|down|much)\d", name)]
    assert len(shades) == 12
    for name in shades:
        levels = sorted((ink, luminance(rgb(colors[name]))))
        assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 4.5, name  # WCAG's line for small text


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("vision", VISION)
def test_up_and_down_differ_for_every_eye(dark: bool, vision: str) -> None:
    """Distances in CIELAB; 2.3 is just noticeable."""
    seen = {name: lab(color, vision) for name, color in theme(dark).items() if re.fullmatch(r"(up|down)\d", name)}
    pairs = [(a, b) for a, b in combinations(seen, 2) if a[:-1] != b[:-1]]
    assert len(pairs) == 16 and min(math.dist(seen[a], seen[b]) for a, b in pairs) > 12


def test_every_mark_has_a_rule() -> None:
    for name in [f"{key}{sign}{shade}" for key in "cr" for sign in ("", "-") for shade in range(1, 5)]:
        assert re.search(rf"\.by-{name[0]}:checked ~ \* \.{name} \{{ background: var\(--(up|down)\d\)", CSS), name
    for name in [f"{key}{shade}" for key in "el" for shade in range(1, 5)]:
        assert f".by-{name[0]}:checked ~ * .{name} {{ background: var(--much{name[1]})" in CSS, name
