"""The laws of objectives, as a criterion."""

from __future__ import annotations

from etr import laws
from etr.validate.base import Bench, Finding, criterion, verdict


@criterion(
    title="Does the objective keep the laws, but for the exceptions that it declares?",
    why="A law that breaks unseen is a defect that no learning curve names: a loss that depends on padding, on the "
    "order of answers, or on how a batch was cut.",
    limit=0,
    line="no law may be broken that is not declared",
    because="Every published objective here keeps them all or says which it breaks, and why; so can a new one.",
    failing="it breaks a law that it does not declare: run `etr check` on it, and mend the objective or declare the "
    "law in its `exceptions` with the reason",
)
def laws_kept(bench: Bench, limit: float) -> Finding:
    found = laws.check(bench.recipe.objective)
    broken = [v.law for v in found if v.outcome == "broken"]
    excepted = [v.law for v in found if v.outcome == "excepted"]
    text = f"{len(found) - len(broken) - len(excepted)} of {len(found)} laws hold"
    text += f"; by declaration not: {', '.join(excepted)}" if excepted else ""
    text += f"; broken: {', '.join(broken)}" if broken else ""
    details = tuple((v.law, f"{v.outcome}: {v.detail}" if v.detail else v.outcome) for v in found)
    return Finding(verdict(len(broken) <= limit), text, float(len(broken)), 2.0 * len(broken), details)
