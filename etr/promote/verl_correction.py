"""Weights between engine and trainer in verl's terms (`algorithm.rollout_correction`, read in code: verl 0.9.1)."""

from __future__ import annotations

from etr.corrections import Correction
from etr.errors import InputError
from etr.promote.terms import Term

SECTION = "algorithm.rollout_correction"


def rollout_correction(settings: Correction) -> list[Term]:
    """The weights between engine and trainer. Raises InputError for those that verl lacks or defines otherwise."""
    where = SECTION
    neutral = [
        Term(
            "", f"{where}.bypass_mode", False, "old log-probs are the trainer's, as ours; else verl takes its own loss"
        ),
        Term("", f"{where}.rollout_rs", None, "nothing is rejected"),
        Term("", f"{where}.rollout_is_batch_normalize", False, "weights as they are"),
    ]
    if settings.reject != "none":
        raise InputError(
            f"correction.reject={settings.reject} cannot go to verl: it takes rejected tokens out of the mask and so "
            "out of the denominator, where we keep them in it; leave it at none"
        )
    if settings.sequence_mask is not None:
        raise InputError("correction.sequence_mask has no counterpart in verl; leave it out, or use --to llm")
    if settings.kind == "none":
        return [
            Term("correction none", f"{where}.rollout_is", None, "no weights; the mismatch is still logged"),
            *neutral,
        ]
    if settings.kind == "is" or settings.level == "geometric":
        raise InputError(
            f"correction.kind={settings.kind} at correction.level={settings.level} has no counterpart in verl; give "
            "kind tis or mis at level token or sequence"
        )
    if settings.normalize:
        raise InputError("correction.normalize divides by another mean in verl; leave it out, or use --to llm")
    if settings.kind == "mis" and settings.low == 0:
        raise InputError("correction.low is 0, and verl wants a lower bound above it; give a small one, such as 1e-6")
    bounds: object = settings.high if settings.kind == "tis" else f"{float(settings.low)!r}_{float(settings.high)!r}"
    meaning = "truncated at" if settings.kind == "tis" else "0 outside of"
    return [
        Term(f"correction {settings.kind}", f"{where}.rollout_is", settings.level, "importance weight of old / engine"),
        Term("correction bounds", f"{where}.rollout_is_threshold", bounds, f"weights are {meaning} {bounds}"),
        *neutral,
    ]
