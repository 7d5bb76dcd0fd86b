"""Samples of a training run, token by token, with the colours that say what the method does to each of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.report.page import Completion, Section, Token, TokenSample
from etr.runs import read_rows

FILE = "samples.jsonl"
RECORDS, MOST_TOKENS = 40, 12_000  # on one page: about two megabytes
# Where one shade ends and the next begins; fixed, so that steps and runs can be compared.
ENTROPY = (0.1, 0.5, 1.0, 2.0)  # nats
SURPRISE = tuple(-math.log(p) for p in (0.9, 0.5, 0.1, 0.01))  # −log p
LOG_RATIO = (0.01, 0.05, 0.2, 0.5)  # |log r|
SHADES = 4
NOTE = (
    "One prompt of a step, drawn among those whose answers got different rewards; of its answers up to four, from the "
    "least to the greatest advantage. Entropy and probability are the sampling policy's. The ratio is taken after the "
    "update, and so is the gradient coefficient c: what the method would still push each token by."
)


def section(run: Path, name: str) -> list[Section]:
    """The section with the samples of a run, if it wrote any. Raises InputError for a broken file."""
    rows = read_rows(run / FILE) if (run / FILE).exists() else []
    if not rows:
        return []
    try:
        chosen = choose(rows)
        scale = greatest(chosen)
        samples = [_sample(row, label, scale) for row, label in zip(chosen, labels(chosen), strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"'{run / FILE}' is incomplete ({error}); repeat the run with --overwrite") from error
    full = f"Colours of c are full at |c|\u00a0=\u00a0{scale:.3g}, the greatest here."
    return [Section(f"Tokens: {name}", f"{NOTE} {full}", token_samples=samples)]


def choose(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most `RECORDS` rows, spread evenly over the run with both ends, and fewer if their tokens are many."""
    most = min(len(rows), RECORDS)
    while True:
        chosen = [rows[round(i * (len(rows) - 1) / max(1, most - 1))] for i in range(most)]
        tokens = sum(len(completion["text"]) for row in chosen for completion in row["completions"])
        if tokens <= MOST_TOKENS or most <= 2:
            return chosen
        most = max(2, most * MOST_TOKENS // tokens)


def labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The step of each row; with a number for the prompt where a step has several.

    >>> labels([{"step": 1}, {"step": 2}, {"step": 2}])
    ['1', '2 · 1', '2 · 2']
    """
    steps = [row["step"] for row in rows]
    places = [steps[: i + 1].count(step) for i, step in enumerate(steps)]
    return [f"{step} · {i}" if steps.count(step) > 1 else f"{step}" for step, i in zip(steps, places, strict=True)]


def greatest(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest |c| of all tokens; 1 if every c is 0."""
    found = [abs(c) for row in rows for one in row["completions"] for c in one["coefficient"] if c is not None]
    return max(found, default=0.0) or 1.0


def marks(coefficient: float, scale: float, entropy: float | None, log_prob: float, ratio: float, clipped: bool) -> str:
    """The names of a token's colours: c for its coefficient, e entropy, l probability, r ratio, x clipped.

    >>> marks(-0.4, 1.0, 0.7, -3.0, 1.3, clipped=False)
    'c-2 e2 l3 r3'
    """
    shades = {
        "c": math.copysign(math.ceil(SHADES * min(1.0, abs(coefficient) / scale)), coefficient),
        "e": 0 if entropy is None else bisect_right(ENTROPY, entropy),
        "l": bisect_right(SURPRISE, -log_prob),
        "r": math.copysign(bisect_right(LOG_RATIO, abs(math.log(ratio))), ratio - 1) if ratio > 0 else -SHADES,
    }
    return " ".join([f"{name}{shade:.0f}" for name, shade in shades.items() if shade] + ["x"] * clipped)


def _sample(row: Mapping[str, Any], label: str, scale: float) -> TokenSample:
    completions = [_completion(one, scale) for one in row["completions"]]
    return TokenSample(label, str(row["prompt"]), str(row["answer"]), completions)


def _completion(row: Mapping[str, Any], scale: float) -> Completion:
    length = len(row["text"])
    entropies = row.get("entropy", [None] * length)
    columns = (row["text"], row["coefficient"], entropies, row["log_prob"], row["ratio"], row["clipped"])
    tokens = [_token(scale, *values) for values in zip(*columns, strict=True)]
    cut = f" (the first {length} are shown)" if row["tokens"] > length else ""
    ending = "" if row["finished"] else ", cut off by the length limit"
    note = f"reward {row['reward']:g}, advantage {row['advantage']:+.3g}, {row['tokens']} tokens{cut}{ending}"
    return Completion(note.replace("-", "\N{MINUS SIGN}"), tokens, row["reward"] > 0)


def _token(
    scale: float, text: str, coefficient: float | None, entropy: float | None, log_prob: float | None,
    ratio: float | None, clipped: bool,
) -> Token:  # fmt: skip
    """One token; null, which stands for NaN and infinity, is read as no push, no surprise and ratio 1."""
    c, lp, r = coefficient or 0.0, log_prob or 0.0, 1.0 if ratio is None else ratio
    numbers = [f"c {c:+.3g}" + (" (clipped)" if clipped else ""), f"p {math.exp(lp):.3g}", f"log p {lp:.3g}"]
    numbers += [f"ratio {r:.4g}"] + ([] if entropy is None else [f"entropy {entropy:.3g} nats"])
    seen = text.replace("\n", "↵\n") or "·"  # a line break, or a part of a character, would have no colour to see
    return Token(seen, marks(c, scale, entropy, lp, r, clipped), ", ".join(numbers).replace("-", "\N{MINUS SIGN}"))
