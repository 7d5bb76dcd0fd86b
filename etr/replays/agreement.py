"""Whether a replay agrees with the record, and where it first does not.

Relative differences are taken against what the numbers are added to or compared with: of a gradient the largest entry
of the recorded one, of a loss the sum of the gradient's magnitudes (a loss of z-scored advantages is near 0 by
cancellation), of a bound 1 or the bound, whichever is larger.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from etr.errors import InputError
from etr.recorded import Recorded, Replay
from etr.recording import versions
from etr.replays.paths import OURS, replay

TOLERANCE = 1e-6  # of hosts, and of a record from another machine: a few roundings of float32
Verdict = Literal["bit-equal", "agrees", "differs", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """One path against the record. loss: replayed; of_loss, gradient, region: largest relative differences.

    where: the first disagreement or why the path was skipped, in one sentence.
    """

    path: str
    verdict: Verdict
    loss: float = math.nan
    of_loss: float = math.nan
    gradient: float = math.nan
    region: float = math.nan
    where: str = ""

    @property
    def disagrees(self) -> bool:
        return self.verdict == "differs"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {}


def rounding(recorded: Recorded) -> str:
    """Why the record need not be met bit for bit here, or "" if it must be: same code, same arithmetic."""
    now = versions(recorded.host)
    if recorded.host not in OURS:
        return f"{recorded.host} adds in another order"
    if (device := recorded.settings.get("device")) != "cpu":
        return f"it was recorded on {device}, whose arithmetic rounds differently"
    if recorded.settings.get("scale", 1.0) != 1.0:
        return "its gradient was scaled for data-parallel ranks, which rounds"
    then = recorded.versions
    return "; ".join(f"{n} was {then.get(n)} and is {now[n]}" for n in ("torch", "cpu") if then.get(n) != now[n])


def compare(path: str, found: Replay, recorded: Recorded, bits: bool) -> Outcome:
    """A replay against the record; bits: must every bit agree, or is `TOLERANCE` enough?"""
    batch = recorded.batch
    kept = batch.response_mask
    size = recorded.gradient.double().abs()
    scales = {
        "loss": size.sum().clamp(min=float(recorded.loss.double().abs())),
        "gradient": size.max(),
        "low": recorded.low.double().abs().clamp(min=1.0),
        "high": recorded.high.double().abs().clamp(min=1.0),
    }
    gaps: dict[str, Tensor] = {}
    for name, scale in scales.items():
        new, old = getattr(found, name), getattr(recorded, name)
        gap = _gap(new.double(), old.double(), scale)
        gaps[name] = torch.where(kept, gap, 0.0) if name in ("low", "high") else gap
    limit = 0.0 if bits else TOLERANCE
    places = [_first(name, gaps[name], limit, found, recorded) for name in ("gradient", "low", "high", "loss")]
    wrong = [text for text in places if text]
    largest = {name: float(gap.max()) for name, gap in gaps.items()}
    return Outcome(
        path=path,
        verdict="differs" if wrong else "agrees" if any(largest.values()) else "bit-equal",
        loss=float(found.loss),
        of_loss=largest["loss"],
        gradient=largest["gradient"],
        region=max(largest["low"], largest["high"]),
        where=wrong[0] if wrong else "",
    )


def _gap(new: Tensor, old: Tensor, scale: Tensor) -> Tensor:
    """|new − old| / scale; 0 where both are equal, infinities too, and infinite where only one is a number."""
    gap = (new - old).abs() / scale.clamp(min=torch.finfo(torch.float64).tiny)
    same = (new == old) | (new.isnan() & old.isnan())
    return torch.where(same, 0.0, torch.where(gap.isnan(), math.inf, gap))


def _first(name: str, gap: Tensor, limit: float, found: Replay, recorded: Recorded) -> str:
    """The first row and token at which a number differs by more than the limit, with both values; "" if none does."""
    wrong = (gap > limit).nonzero()
    if not len(wrong):
        return ""
    at = tuple(wrong[0].tolist())
    old, new = getattr(recorded, name)[at].item(), getattr(found, name)[at].item()
    what = {"low": "lower bound", "high": "upper bound"}.get(name, name)
    place = f" at row {at[0]}, token {at[1]}" if at else ""
    return f"{what}{place}: recorded {old:.9g}, replayed {new:.9g} ({len(wrong)} such)"


def run_all(
    recorded: Recorded, paths: Sequence[str], progress: Callable[[str], None] = lambda path: None
) -> tuple[list[Outcome], dict[str, Replay]]:
    """Every path against the record, and ours against each other; and what each computed.

    A path that cannot serve the record (package missing, input that the host lacks) is skipped, with its reason.
    Ours must meet a record of ours bit for bit where `rounding` finds no reason against it; each other always.
    """
    outcomes: list[Outcome] = []
    found: dict[str, Replay] = {}
    bits = not rounding(recorded)
    for path in paths:
        progress(path)
        try:
            found[path] = replay(path, recorded)
        except InputError as error:
            outcomes.append(Outcome(path, "skipped", where=str(error)))
        else:
            outcomes.append(compare(path, found[path], recorded, bits and path in OURS))
    if set(OURS) <= set(found):
        first, second = OURS
        reference = dataclasses.replace(recorded, **found[first]._asdict())
        outcomes.append(compare(f"{second} against {first}", found[second], reference, bits=True))
    return outcomes, found
