"""Statements of the same papers that no toy can check, with the reason: kept in sight rather than left out."""

from __future__ import annotations

from typing import NamedTuple


class Unchecked(NamedTuple):
    """A published statement (seen in a paper's abstract, page or README, not recomputed) and why it is not checked."""

    section: int
    text: str
    source: str
    why: str


MODEL = "a result on language models; a toy has no counterpart"

UNCHECKED = (
    Unchecked(
        3, "The first 200 steps use 73 % of the entropy and make 76 % of the gain; a fit on 36 steps predicts the next "
        "200 within about 1 %.", "2505.22617", MODEL,
    ),
    Unchecked(
        3, "a and b do not depend on the algorithm at a fixed model.", "2505.22617",
        "with one good arm it is true by construction, with several good arms it fails (law-caution)",
    ),
    Unchecked(
        3, "KL-Cov keeps entropy more than 10 times higher at the plateau and gains 2.0 % (7B) and 6.4 % (32B) over "
        "GRPO.",
        "2505.22617", MODEL,
    ),
    Unchecked(
        4, "Random rewards gain 21.4 points on MATH-500 with Qwen2.5-Math-7B (true rewards 29.1), none with Llama 3 or "
        "OLMo 2; the share of code reasoning goes from 65 % to over 90 %.", "2506.10947", MODEL,
    ),
    Unchecked(
        5, "Of 505 recorded GRPO steps with G = 8, 270 had no advantage at all; of 500 clipped ones, 328.",
        "logs of rasbt's GRPO runs", "counts from a recording that is not part of this repository",
    ),
)  # fmt: skip
