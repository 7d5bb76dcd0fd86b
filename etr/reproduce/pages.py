"""Results as plain values for JSON and as a readable page in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from etr.reproduce import SECTIONS
from etr.reproduce.base import SIGNS, Measured, Relation, Result, Target
from etr.reproduce.unchecked import UNCHECKED

ROUNDING = 1e-9
PLUS: dict[Relation, str] = {"=": "±", "<=": "+", ">=": "−"}
HEADER = """# Theory, recomputed

Statements about policy gradients, entropy, clipping, group advantages, trust regions and KL estimators, each recomputed
with this package's own functions: exact values and gradients (`etr.exact`), expected gradients by enumeration
(`etr.oracles`), and the loss that trains (`etr.policy_loss`). `etr reproduce --all` makes the numbers; this page is
generated from them ([reproduce.json](reproduce.json)).

**How to read it.** *Given* is the published number with the uncertainty that its printed digits or its sample imply,
or a bound. *Ours* has a 95 % interval where it rests on random draws. *Reproduced* means: they differ by no more than
the two uncertainties together (√ of the sum of squares), or the whole interval lies on the right side of the bound;
where a statement has no number the bound is ours. *Differs* means that the number is another one (✗) and the reason is
known; *not reproduced*, that it is not.
Evidence: ◐ the statement was seen, but not its proof or table; ○ the number is this project's own calculation, made
before and independently of this code, or a constant from memory.
"""


def number(value: float) -> str:
    """Six significant digits; one for what is left of a zero by rounding.

    >>> number(0.00182617), number(1.0), number(-3.3307e-16)
    ('0.00182617', '1', '-3e-16')
    """
    return f"{value:.6g}" if abs(value) > ROUNDING else f"{value:.1g}"


def given(target: Target) -> str:
    """`0.462` as printed, `0.826 ± 0.059`, `≤ 1`, `≥ -1 − 0.1`: a published number or bound as text."""
    text = target.text or SIGNS[target.relation] + number(target.value)
    if target.text or target.tolerance < ROUNDING:
        return text
    return f"{text} {PLUS[target.relation]} {target.tolerance:.2g}"


def ours(measured: Measured) -> str:
    """`0.895 ± 0.056` with a 95 % half-width, or the number alone."""
    if not measured.half_width:
        return number(measured.value)
    return f"{measured.value:.4g} ± {measured.half_width:.2g}"


def reasons(result: Result) -> list[str]:
    """Why the numbers that are known to be others are so; empty when all agree."""
    names = [t.name for t, agrees in zip(result.statement.published, result.agrees, strict=True) if not agrees]
    known = result.statement.differs
    return [f"{name}: {known[name]}" for name in names if name in known]


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Plain values, one entry per statement."""
    return [
        {
            "id": r.statement.id,
            "section": r.statement.section,
            "statement": r.statement.text,
            "source": r.statement.source,
            "evidence": r.statement.evidence,
            "quick": r.statement.quick,
            "verdict": r.verdict,
            "seconds": round(r.seconds, 2),
            "note": r.statement.note,
            "differs": reasons(r),
            "numbers": [
                {**t._asdict(), "ours": m.value, "half_width": m.half_width, "agrees": a}
                for t, m, a in zip(r.statement.published, r.measured, r.agrees, strict=True)
            ],
        }
        for r in results
    ]


def counts(results: Sequence[Result]) -> str:
    """`44 of 45 statements reproduced, 1 differs; 190 numbers in 80 s`."""
    verdicts = [r.verdict for r in results]
    other = [f"{verdicts.count(v)} {v}" for v in ("differs", "not reproduced") if v in verdicts]
    numbers, seconds = sum(len(r.measured) for r in results), math.fsum(r.seconds for r in results)
    head = f"{verdicts.count('reproduced')} of {len(results)} statements reproduced"
    return f"{'; '.join([head, *other])}; {numbers} numbers in {seconds:.0f} s"


def as_markdown(results: Sequence[Result]) -> str:
    """The page docs/results/theory.md."""
    parts = [HEADER, f"**{counts(results)}.**\n"]
    for verdict in ("differs", "not reproduced"):
        named = [f"* {r.statement.id}. {' '.join(reasons(r))}" for r in results if r.verdict == verdict]
        parts += [f"{verdict.capitalize()}:\n", *named, ""] if named else []
    for section, title in SECTIONS.items():
        parts.append(f"## {section}. {title}\n")
        parts += [_statement(r) for r in results if r.statement.section == section]
        open_ones = [u for u in UNCHECKED if u.section == section]
        parts += ["Not checked here:\n"] if open_ones else []
        parts += [f"* {u.text} ({u.source}): {u.why}." for u in open_ones]
        parts += [""] if open_ones else []
    return "\n".join(parts).rstrip() + "\n"


def _statement(result: Result) -> str:
    s = result.statement
    mark = {"third-party": "◐", "reconstructed": "○"}[s.evidence]
    lines = [f"**{s.id}**: {s.text} *{mark} {s.source}.* **{result.verdict.capitalize()}.**"]
    lines += reasons(result)
    lines += [s.note] if s.note else []
    lines += ["", "| | given | ours |", "|---|---|---|"]
    for t, m, a in zip(s.published, result.measured, result.agrees, strict=True):
        lines.append(f"| {_cell(t.name)} | {given(t)} | {ours(m)}{'' if a else ' ✗'} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
