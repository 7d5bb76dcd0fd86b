"""The site without building it: generated parts are complete, links lead somewhere, examples run."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

import etr
from etr import laws, registry
from etr.cli import main
from etr.diagnostics import METRICS
from etr.plots.style import OBJECTIVE_COLORS
from etr.recipe import load_recipe
from etr.toy.compare import MEASURES

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
PAGES = [*sorted(page for page in DOCS.glob("**/*.md") if "_build" not in page.parts), README]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS.parent).as_posix())


@pytest.fixture(scope="module")
def site() -> Iterator[dict[str, ModuleType]]:
    """The modules that write parts of the site; none of them needs Sphinx."""
    paths = [str(DOCS / "_ext"), str(DOCS)]
    sys.path[:0] = paths
    yield {name: importlib.import_module(name) for name in ("cards", "pictures", "from_code", "figure_readme")}
    del sys.path[: len(paths)]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text_of(page)) if name == language]


# What the code writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", etr.list_objectives())
def test_every_objective_has_a_card(site: dict[str, ModuleType], name: str) -> None:
    objective, card = etr.get(name), site["cards"].card(name)
    assert card in site["cards"].fill(text_of(DOCS / "objectives.md"))
    assert f"## `{name}`" in card and objective.paper.title in card and objective.paper.arxiv in card
    assert objective.paper.evidence in card
    for field in vars(objective):
        assert f"| `{field}` | `{getattr(objective, field)}` |" in card
    for law, reason in objective.exceptions.items():
        assert law in card and reason in card
    if objective.reduces_to is not None:
        assert f"**Reduces to:** [`{objective.reduces_to.parent}`]" in card
    assert ("nothing further" in card) == (not objective.needs)
    source = re.search(r"<\.\./(.+)>`", card)
    assert source and (DOCS.parent / source[1]).is_file()


def test_cards_keep_equations_line_by_line(site: dict[str, ModuleType]) -> None:
    card = site["cards"].card("etr")
    assert "\nmicro_i = 1 + λ_mic·tanh(|A_i| − 1)" in card and "```text\n" in card


def test_every_law_metric_and_measure_is_listed(site: dict[str, ModuleType]) -> None:
    fill = site["cards"].fill
    listed, metrics = fill(text_of(DOCS / "laws.md")), fill(text_of(DOCS / "metrics.md"))
    rows = re.findall(r"^\| (\d+) \| .+ \| `(\w+)` \|", listed, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(laws.LAWS) + 1))
    assert {name for _, name in rows} == set(laws.LAWS)
    for name, meaning in {**METRICS, **MEASURES}.items():
        assert name in metrics and meaning in metrics
    assert "[`cispo`]" in next(line for line in listed.splitlines() if "`pessimistic`" in line)


@by_page
def test_no_marker_is_left(site: dict[str, ModuleType], page: Path) -> None:
    assert "<!-- generated" not in site["cards"].fill(text_of(page))


def test_an_unknown_marker_is_an_error(site: dict[str, ModuleType]) -> None:
    with pytest.raises(KeyError, match="nonsense"):
        site["cards"].fill("<!-- generated: nonsense -->")


def test_docstrings_become_restructured_text(site: dict[str, ModuleType]) -> None:
    lines = ["Mean of |A| over `[*R, B]`, r_t.", "", "    a = b * c", "", ">>> f(1)", "2"]
    assert site["from_code"].rst(lines) == [
        *[r"Mean of \|A\| over ``[*R, B]``, r\_t.", ""],
        *["::", "", "    a = b * c", ""],
        *[">>> f(1)", "2", ""],
    ]


def test_links_to_notebooks_lead_to_their_pages(site: dict[str, ModuleType]) -> None:
    source = ["see [the\ntext](../notebooks/01_x.py)."]
    site["from_code"].fill_page(None, "faq", source)
    assert source == ["see {doc}`the\ntext </notebooks/01_x>`."]


# What people wrote ---------------------------------------------------------------------------------------------


def anchors(site: dict[str, ModuleType], page: Path) -> set[str]:
    """Headings as the site names them, and explicit labels."""
    text = site["cards"].fill(text_of(page))
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


@by_page
def test_internal_links_lead_somewhere(site: dict[str, ModuleType], page: Path) -> None:
    for is_image, target in LINK.findall(FENCE.sub("", site["cards"].fill(text_of(page)))):
        if target.startswith(("http:", "https:")) or "_build/" in target:  # pictures drawn by the build
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.is_file() or (page == README and place.is_dir()), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(site, place), f"{page.name}: {target}"
        assert not is_image or place.suffix == ".png"


@by_page
def test_no_page_needs_another_server(page: Path) -> None:
    text = FENCE.sub("", text_of(page))
    assert "$" not in text, "dollar math would load MathJax; write equations in Unicode"
    assert not re.search(r"<(script|link|img|iframe)\b", text)


@by_page
def test_python_examples_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in one namespace, in order; an objective registered there does not outlive the test."""
    monkeypatch.setattr(registry, "_OBJECTIVES", dict(registry._OBJECTIVES))
    name = f"example_{page.stem}"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # dataclasses look their module up
    namespace = vars(sys.modules[name])
    for number, body in enumerate(code(page, "python")):
        exec(compile(body, f"{page.name}, python block {number}", "exec"), namespace)


def test_the_readme_lists_the_first_objectives_and_counts_the_others() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", text_of(README), re.MULTILINE)
    assert set(listed) == set(OBJECTIVE_COLORS)
    assert f"These twelve and {len(etr.list_objectives()) - 12} more" in text_of(README) and len(listed) == 12


def test_there_are_examples_to_run() -> None:
    assert sum(len(code(page, "python")) for page in PAGES) >= 5


def test_the_recipe_example_loads(tmp_path: Path) -> None:
    (body,) = code(DOCS / "howto" / "write_a_recipe.md", "yaml")
    path = tmp_path / "gentle.yaml"
    path.write_text(body, encoding="utf-8")
    recipe, data = load_recipe(path), yaml.safe_load(body)
    assert recipe.name == data["name"] and recipe.objective.name == data["objective"]["name"]
    for field, value in data["objective"].items():
        assert getattr(recipe.objective, field) == value
    assert (recipe.advantage, recipe.optimizer.lr) == (data["advantage"], data["optimizer"]["lr"])


def shell_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """(page, command, options) of every `etr ...` line in a bash block."""
    found = []
    for page in PAGES:
        for line in "".join(code(page, "bash")).splitlines():
            words = line.partition(" #")[0].split()
            if words[:1] == ["etr"]:
                found.append((page.name, words[1], tuple(word for word in words if word.startswith("--"))))
    return found


@pytest.mark.parametrize("command", sorted({command for _, command, _ in shell_commands()}))
def test_shell_examples_name_real_commands_and_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    for page, name, options in shell_commands():
        assert name != command or set(options) <= known, f"{page}: etr {name} {set(options) - known}"


# The README's figure -------------------------------------------------------------------------------------------


def test_the_readme_figure_is_there_and_small() -> None:
    path = DOCS / "images" / "etr_vs_grpo.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000


def test_the_readme_figure_shows_the_formula(site: dict[str, ModuleType]) -> None:
    """ε = 0.2·(1 + tanh(|A| − 1)/2)·(1 + (4p(1 − p) − ½)/2), evaluated by hand."""
    p = torch.tensor([1 / 16, 1 / 2, 15 / 16], dtype=torch.float64)
    width = site["figure_readme"].half_width(p, ((1 - p) / p).sqrt())
    assert [round(x, 4) for x in width.tolist()] == [0.2596, 0.25, 0.1188]


def test_the_readme_figure_can_be_drawn(site: dict[str, ModuleType]) -> None:
    rng = torch.Generator().manual_seed(0)
    curves = {name: torch.rand(8, 40, generator=rng) for name in ("etr", "grpo", "grpo_wide", "wider")}
    figure = site["figure_readme"].draw(curves)
    region, reward, difference = figure.axes
    assert len(region.lines) == 3 and len(reward.lines) == 3 and len(difference.lines) == 4
    figure.draw_without_rendering()
