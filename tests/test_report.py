"""The report: everything from the folders is on the page, nothing of it is markup, and the page needs nothing else."""

from __future__ import annotations

import json
import math
import re
from base64 import b64decode
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from etr.errors import InputError
from etr.plots import save_figures, seed_bands
from etr.report import Picture, Sample, Section, collect, write_report
from etr.report.collect import find_runs
from etr.report.llm import progress, side_by_side
from etr.runs import RunFolder

NASTY = "<script>alert('x')</script> & <b>\"bold\"</b> {{ 7 * 7 }} </pre>"
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """The page as a browser sees it: text, tags with attributes, and whether every tag is closed in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def figure(name: str = "etr") -> dict[str, object]:
    return {name: seed_bands({name: torch.rand(3, 4)}, [1, 2, 3, 4], "reward", "title")}


def llm_run(path: Path, recipe: str = "etr", steps: int = 4, done: bool = True) -> Path:
    config = {"kind": "llm", "recipe": {"name": recipe}, "settings": {"model": "tiny", "task": "sums"}}
    with RunFolder.create(path, config) as run:
        for step in range(1, steps + 1):
            run.log(step, {"reward": step / 10, "entropy": 1.0, "kl": 0.01, "zero_grad_frac": 0.1})
        sample = {"prompt": f"2 + 2? {NASTY}", "answer": "4", "before": NASTY, "reward_before": 0.0}
        run.write_json("samples.json", [sample | ({"after": "4!", "reward_after": 1.0} if done else {})])
        before = {"pass@1": {"estimate": 0.25, "low": 0.2, "high": 0.3}, "truncated": 0.125, "questions": 40}
        after = {**before, "pass@1": {"estimate": 0.5, "low": 0.4, "high": 0.6}}
        run.write_json("eval.json", {"before": before} | ({"after": after} if done else {}))
    return path


def compare_run(path: Path) -> Path:
    with RunFolder.create(path, {"kind": "compare", "envs": ["bandit"]}) as run:
        rows = [
            {"env": env, "recipe": r, "metric": m, "iqm": 0.5, "low": 0.4321, "high": 0.6, "n_seeds": 64}
            for r in ("etr", "grpo")
            for env in ("bandit", "tree")
            for m in ("final score", "final entropy")
        ]
        pair = {"env": "bandit", "recipe": "etr", "against": "grpo", "metric": "final score"}
        ends = [(0.7, 0.6, 0.8), (0.55, 0.45, 0.65), (0.3, 0.2, 0.4)]
        pairs = [{**pair, "probability": p, "low": low, "high": high} for p, low, high in ends]
        run.write_json("comparison.json", {"rows": rows, "improvement": pairs})
        save_figures(figure(), run.figures)  # type: ignore[arg-type]
    return path


def report(folder: Path) -> Page:
    path = write_report(folder, collect(folder))
    assert path == folder / "report.html"
    return Page(path)


# ------------------------------------------------------------------------------------------------ the page


def test_text_from_outside_is_never_markup(tmp_path: Path) -> None:
    section = Section(
        NASTY,
        text=f"{NASTY}\n\nsecond",
        table=([NASTY, "b"], [[NASTY, "1.5"]]),
        figures=[Picture(b"\x89PNG" + bytes(30), NASTY, NASTY)],
        samples=[Sample(NASTY, NASTY, NASTY, NASTY, 0.0, 1.0)],
        details=[(NASTY, NASTY)],
        source=NASTY,
    )
    path = write_report(tmp_path, [section])
    page = Page(path)
    assert not page.all("script")
    assert page.text.count(NASTY) == 13  # each of the places above, and nothing evaluated
    assert page.all("img")[0]["alt"] == NASTY


def test_the_page_needs_no_network_and_holds_its_pictures(tmp_path: Path) -> None:
    page = report(compare_run(tmp_path / "run"))
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert re.match(r"data:image/png;base64,|#", attributes.get(name) or "#")
    text = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<link|<script", text)
    saved = (tmp_path / "run/figures/etr.png").read_bytes()
    sources = [b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    assert saved in sources and all(source.startswith(b"\x89PNG") for source in sources)


def test_the_page_follows_the_readers_light_or_dark_setting(tmp_path: Path) -> None:
    text = write_report(tmp_path, [Section("x")]).read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text and '<meta name="color-scheme" content="light dark">' in text


def test_paragraphs_numbers_and_contents(tmp_path: Path) -> None:
    section = Section("A", "one\n\ntwo, 95 % sure", table=(["name", "value"], [["etr", "0.5 [0.4, 0.6]"]]))
    page = Page(write_report(tmp_path, [section, Section("B"), Section("C")]))
    assert "one" in page.text and "95\xa0% sure" in page.text
    assert [cell.get("class") for cell in page.all("td")] == [None, "number"]
    assert [link["href"] for link in page.all("a")] == ["#s1", "#s2", "#s3"]
    assert [part["id"] for part in page.all("section")] == ["s1", "s2", "s3"]


def test_pictures_keep_their_size_and_wide_ones_stand_alone(tmp_path: Path) -> None:
    wide, small = (Picture(b"\x89PNG" + bytes(12) + size.to_bytes(4, "big"), "") for size in (1440, 960))
    page = Page(write_report(tmp_path, [Section("x", figures=[wide, small])]))
    assert [image["width"] for image in page.all("img")] == ["960", "640"]
    assert [one.get("class") for one in page.all("figure")] == ["wide", None]


def test_a_report_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write '.*gone/report.html' \(No such file or directory\)"):
        write_report(tmp_path / "gone", [Section("x")])


# ------------------------------------------------------------------------------------------------ comparisons


def test_a_comparison_shows_scores_chances_readings_and_captions(tmp_path: Path) -> None:
    page = report(compare_run(tmp_path / "run"))
    assert page.text.count("0.500 [0.432, 0.600]") == 8
    assert "64 seeds" in page.text and "n = 3 seeds" in page.text
    readings = re.findall(r"(0\.\d+ \[[^]]+\])\n(.+ is better|not settled)\n", page.text)
    assert readings == [
        ("0.700 [0.600, 0.800]", "etr is better"),
        ("0.550 [0.450, 0.650]", "not settled"),
        ("0.300 [0.200, 0.400]", "grpo is better"),
    ]
    assert [image["alt"] for image in page.all("img")] == ["final score", "final entropy", "etr"]
    environments = re.findall(r"\n(bandit|tree)\n(etr|grpo)\n0", page.text)
    assert environments == [("bandit", "etr"), ("bandit", "grpo"), ("tree", "etr"), ("tree", "grpo")]


@pytest.mark.parametrize("content", ['{"rows": []}', '{"rows": [{"env": "x"}], "improvement": []}', "[]"])
def test_a_comparison_with_missing_parts_is_named(tmp_path: Path, content: str) -> None:
    run = compare_run(tmp_path / "run")
    (run / "comparison.json").write_text(content)
    with pytest.raises(InputError, match=r"comparison.json' is incomplete.*; repeat the comparison"):
        collect(run)


def test_an_unfinished_comparison_is_named(tmp_path: Path) -> None:
    run = compare_run(tmp_path / "run")
    (run / "comparison.json").unlink()
    with pytest.raises(InputError, match=r"cannot read '.*comparison.json' \(No such file.*finished run"):
        collect(run)


def test_an_unfinished_comparison_among_others_is_left_out(tmp_path: Path) -> None:
    whole, cut = compare_run(tmp_path / "b"), compare_run(tmp_path / "a")
    (cut / "comparison.json").unlink()
    assert {section.source for section in collect(tmp_path)} - {""} == {whole.name}
    (whole / "comparison.json").unlink()
    with pytest.raises(InputError, match="cannot read"):  # nothing else to show
        collect(tmp_path)


def test_broken_captions_are_named(tmp_path: Path) -> None:
    run = compare_run(tmp_path / "run")
    (run / "figures/captions.json").write_text("[]")
    with pytest.raises(InputError, match=r"captions.json' is not of the form \{file name: caption\}"):
        collect(run)


# ------------------------------------------------------------------------------------------------ LLM runs


def test_an_llm_run_shows_progress_answers_and_pass_at_k(tmp_path: Path) -> None:
    page = report(llm_run(tmp_path / "run", steps=4))
    assert "etr: tiny on sums" in page.text
    assert "4 training steps. Mean over the first and the last 2: reward 0.150 → 0.350" in page.text
    assert "0.250 [0.200, 0.300]" in page.text and "0.500 [0.400, 0.600]" in page.text
    assert "after training" in page.text and "4!" in page.text and "reward 1" in page.text
    assert page.text.count(NASTY) == 2
    assert "mean over 40 questions [95\xa0% interval" in page.text and "\n0.125\n" in page.text
    assert "kind: llm" in page.text and '"python"' in page.text  # config and environment, folded
    assert len(page.all("img")) == 1


def test_a_stopped_run_has_a_report_too(tmp_path: Path) -> None:
    page = report(llm_run(tmp_path / "run", steps=0, done=False))
    assert "No training step has ended yet." in page.text and not page.all("img")
    assert [one["class"] for one in page.all("div") if "answer" in (one["class"] or "").split()] == ["answer"]
    assert len(page.all("th")) == 2  # the measure and its value before training


def test_a_run_without_evaluation_has_no_table(tmp_path: Path) -> None:
    run = llm_run(tmp_path / "run")
    (run / "eval.json").unlink()
    (run / "samples.json").write_text("[]")
    page = report(run)
    assert not page.all("table") and "Held-out" not in page.text and "Sampled answers" not in page.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.json", '[{"prompt": "x"}]'),
        ("samples.json", "[1]"),
        ("eval.json", '{"before": {"pass@1": {"estimate": 1}}}'),
        ("eval.json", "[]"),
    ],
)
def test_broken_llm_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    run = llm_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}' is incomplete.*; repeat the run with --overwrite"):
        collect(run)


def test_progress_leaves_out_what_was_not_measured() -> None:
    rows = [{"step": 1.0, "reward": 0.0}, {"step": 2.0, "reward": math.nan}, {"step": 3.0, "reward": 1.0}]
    assert "first and the last 1: reward 0.000 → 1.000, entropy nan → nan" in progress(rows)


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_of_runs_gives_one_report_comparisons_first(tmp_path: Path) -> None:
    llm_run(tmp_path / "a-llm"), llm_run(tmp_path / "deeper/b-llm", recipe="grpo"), compare_run(tmp_path / "toy")
    (tmp_path / ".hidden").mkdir()
    llm_run(tmp_path / ".hidden/run")
    sections = collect(tmp_path)
    sources = [section.source for section in sections if section.source]
    assert sources == ["toy", "a-llm", "deeper/b-llm"]
    assert sections[-1].title == "LLM runs side by side" and len(sections[-1].figures) == 1
    assert Page(write_report(tmp_path, sections)).text.count("a-llm") == 1


@pytest.mark.parametrize(
    ("paths", "recipes", "names"),
    [
        (["a", "b"], ["etr", "grpo"], ["etr", "grpo"]),
        (["a", "b"], ["etr", "etr"], ["a", "b"]),
        (["1/run", "2/run"], ["etr", "etr"], ["{0}/1/run", "{0}/2/run"]),
    ],
)
def test_runs_side_by_side_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], recipes: list[str], names: list[str]
) -> None:
    drawn: list[str] = []

    def draw(runs: Iterable[str]) -> Picture:
        drawn.extend(runs)
        return Picture(bytes(24), "")

    monkeypatch.setattr("etr.report.llm._curves", draw)
    side_by_side([llm_run(tmp_path / path, recipe) for path, recipe in zip(paths, recipes, strict=True)])
    assert drawn == [name.format(tmp_path) for name in names]


def test_one_llm_run_has_nothing_beside_it(tmp_path: Path) -> None:
    llm_run(tmp_path / "run")
    assert "LLM runs side by side" not in [section.title for section in collect(tmp_path)]


def test_runs_inside_runs_and_too_deep_ones_are_not_found(tmp_path: Path) -> None:
    outer = llm_run(tmp_path / "run")
    llm_run(outer / "inner")
    llm_run(tmp_path / "1/2/3/4")
    assert find_runs(tmp_path) == [outer]


def test_folders_that_hold_no_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder '.*gone'; give the folder of a run"):
        collect(tmp_path / "gone")
    with pytest.raises(InputError, match="holds no run; give the folder of a run, or one that holds runs"):
        collect(tmp_path)


def test_an_unknown_kind_of_run_is_named(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {"kind": "llmm"}).close()
    with pytest.raises(InputError, match=r"unknown kind of run 'llmm'; did you mean 'llm'.*run'"):
        collect(tmp_path / "run")


def test_samples_survive_the_way_through_json(tmp_path: Path) -> None:
    text = "line one\nline two\u2028 \U0001f642 \\ \x1b[31m"
    run = llm_run(tmp_path / "run")
    rows = json.loads((run / "samples.json").read_text())
    (run / "samples.json").write_text(json.dumps([{**rows[0], "before": text}]))
    (sampled,) = collect(run)[1].samples
    assert sampled.before == text
