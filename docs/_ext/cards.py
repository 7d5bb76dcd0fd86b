"""Parts of the pages that are written by the code itself, as Markdown, so that they cannot drift from it.

A page asks for a part with a line `<!-- generated: objectives -->`. No Sphinx is needed here: tests call `fill`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import parity
from library import library

import etr
from etr import laws
from etr.diagnostics import METRICS
from etr.fields import RANGES
from etr.objective import NEEDS, Objective
from etr.registry import objective_class
from etr.systems import SYSTEMS
from etr.toy.compare import MEASURES
from etr.validate import CRITERIA, ORDER, SUITE

MARKER = re.compile(r"^<!-- generated: (\S+) -->$", re.MULTILINE)
EVIDENCE = {
    "verified": "● verified: read in the paper or in published code (verl, TRL, the authors'), and tested against it",
    "third-party": "◐ third-party: read in somebody else's code or account",
    "reconstructed": "○ reconstructed: this project's own formula",
}
PICTURES = "_build/pictures"  # below docs/, never committed


def fill(page: str) -> str:
    """The page with every marker replaced by its part. Raises KeyError for a part that nothing generates."""
    return MARKER.sub(lambda match: PARTS[match[1]](), page)


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """A docstring cut into ("prose" | "literal" | "doctest", lines): equations and tables keep their line breaks."""

    def kind(line: str) -> str:
        if line.startswith((">>>", "...")):
            return "doctest"
        return "literal" if line.startswith(("    ", "|")) else "prose" if line.strip() else ""

    found: list[tuple[str, list[str]]] = []
    for name, lines in groupby(text.strip("\n").splitlines(), kind):
        if name == "prose" and found and found[-1][0] == "doctest":
            found[-1][1].extend(lines)  # what the doctest prints
        elif name:
            found.append((name, list(lines)))
        else:
            found.append(("", []))
    return [(name, lines) for name, lines in found if name]


def markdown(text: str) -> str:
    """A docstring as Markdown."""
    fences = {"prose": ("", ""), "literal": ("```text\n", "\n```"), "doctest": ("```python\n", "\n```")}
    parts = []
    for name, lines in blocks(text):
        start, end = fences[name]
        shift = 4 if name == "literal" and lines[0].startswith("    ") else 0
        parts.append(start + "\n".join(line[shift:] for line in lines) + end)
    return "\n\n".join(parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in a cell are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def docstring(objective: Objective) -> str:
    """What the file of an objective says: one sentence, the paper, the equation, what is whose."""
    return sys.modules[type(objective).__module__].__doc__ or type(objective).__doc__ or ""


def objectives() -> str:
    """An overview, then one card per registered objective."""
    names = etr.list_objectives()
    rows = []
    for name in sorted(names, key=lambda name: (objective_class(name).category, name)):
        cls = objective_class(name)
        first = docstring(etr.get(name)).strip().splitlines()[0]
        line = first.partition(": ")[2] or first
        rows.append([f"[`{name}`](#{anchor(name)})", cls.category, line, cls.paper.evidence])
    header = ["name", "changes", "in one line", "evidence"]
    return "\n\n".join([table(header, rows), *(card(name) for name in names)])


def anchor(name: str) -> str:
    """Where the card of an objective can be linked to."""
    return f"objective-{name.replace('_', '-')}"


def card(name: str) -> str:
    """The card of one objective."""
    objective = etr.get(name)
    paper = objective.paper
    path = type(objective).__module__.replace(".", "/") + ".py"
    source = f"arXiv [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else "no arXiv number"
    facts = [
        f"* **Reduces to:** {reduction(objective)}",
        f"* **Needs:** {needs(objective)}",
        f"* **A token's objective depends on:** the {objective.scope}",
        *(f"* **Breaks the law `{law}` by design:** {why}" for law, why in objective.exceptions.items()),
        f"* **Source:** {{download}}`{path} <../{path}>`",
    ]
    return "\n\n".join(
        [
            f"({anchor(name)})=\n## `{name}`",
            f"*{paper.title}*, {source}. {EVIDENCE[paper.evidence]}.",
            f"![Objective and gradient coefficient of {name} over the ratio]({PICTURES}/{name}.png)",
            markdown(docstring(objective)),
            table(["field", "default", "range"], fields(objective)),
            "\n".join(facts),
        ]
    )


def fields(objective: Objective) -> list[list[str]]:
    """Name, default and allowed range of every hyper-parameter."""
    rows = []
    for field in dataclasses.fields(objective):
        rows.append([f"`{field.name}`", f"`{getattr(objective, field.name)}`", span(field.name)])
    return rows


def span(field: str) -> str:
    """The allowed values of a field, empty where any will do."""
    if field not in RANGES:
        return ""
    low, high = RANGES[field]
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def reduction(objective: Objective) -> str:
    """At which settings the objective is bit-equal to its parent."""
    found = objective.reduces_to
    if found is None:
        return "nothing simpler"
    settings = ", ".join(f"`{key}={value}`" for key, value in found.fields.items())
    where = " for answers of one token" if found.single_token else ""
    return f"[`{found.parent}`](#{anchor(found.parent)}) at {settings}{where}: bit-equal, given the same advantages"


def needs(objective: Objective) -> str:
    """Inputs beyond log-probs, mask and advantages."""
    return "; ".join(NEEDS[name] for name in sorted(objective.needs)) or "nothing further"


def systems() -> str:
    """All systems of the field: their name here, or the reason why they are not."""
    rows = []
    for system in SYSTEMS:
        here = ", ".join(f"`{n}`" if "." in n else f"[`{n}`](objectives.md#{anchor(n)})" for n in system.found)
        linked = "." in system.arxiv
        paper = f"[{system.arxiv}](https://arxiv.org/abs/{system.arxiv})" if linked else system.arxiv
        rows.append([str(system.number), system.name, paper, system.category, here or f"not here: {system.reason}"])
    return table(["", "system", "paper", "category", "status"], rows)


def law_list() -> str:
    """Every law with its statement and the objectives that break it by design."""
    rows = []
    for name in sorted(laws.LAWS, key=lambda name: int(laws.title(name).partition(".")[0])):
        number, _, statement = laws.title(name).partition(". ")
        breakers = [o for o in etr.list_objectives() if name in etr.get(o).exceptions]
        links = ", ".join(f"[`{o}`](objectives.md#{anchor(o)})" for o in breakers)
        rows.append([number, statement, f"`{name}`", links or "none"])
    return table(["", "law", "name", "broken by design by"], rows)


def metrics() -> str:
    """Every metric of a loss, with its unit."""
    return table(["metric", "meaning"], [[f"`{name}`", meaning] for name, meaning in METRICS.items()])


def measures() -> str:
    """What `etr compare` reports."""
    return table(["measure", "meaning"], [[name, meaning] for name, meaning in MEASURES.items()])


def criteria() -> str:
    """Every criterion of `etr validate`, in the order of the suite."""
    parts = []
    for name in ORDER:
        one = CRITERIA[name]
        lines = [f"* **Line:** {one.line}.", f"* **Why there:** {one.because}", f"* **When it fails:** {one.failing}."]
        required = "" if one.required else " Where it cannot be measured it is left out."
        parts.append(f"## {one.title}\n\n`{name}`. {one.why}{required}\n\n" + "\n".join(lines))
    return "\n\n".join([f"Suite {SUITE}.", *parts])


PARTS: dict[str, Callable[[], str]] = {
    "criteria": criteria,
    "objectives": objectives,
    "laws": law_list,
    "systems": systems,
    "metrics": metrics,
    "measures": measures,
    "library": lambda: table(*library()),
    "deviations": lambda: table(*parity.deviations()),
    "missing": lambda: table(*parity.missing()),
    "compared": lambda: table(*parity.compared()),
}
