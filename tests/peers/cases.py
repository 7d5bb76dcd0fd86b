"""The inputs that every peer is given: seeded ragged batches `[12, 7]` of three prompts with four responses.

Standard library only; numbers are rounded, so that all peers and etr start from the same bits.
"""

from __future__ import annotations

import random
from typing import Any

Planted = dict[tuple[int, int], float]
Matrix = list[list[float]]
ROWS, TOKENS, GROUP = 12, 7, 4
DIGITS = 6  # of log-probs; the narrowest clip is 3e-4
# Standard deviation of log π/π_old by kind of case. Clips of 0.2 bite on both sides in `wide`, clips of 3e-4 in `tiny`;
# `far` is mostly outside every region; `extreme` has the outliers below, `short` mostly answers of one token,
# `equal` two groups of equal rewards, and in `shift` all tokens have one ratio.
NOISE = {"wide": 0.7, "tiny": 1e-3, "far": 3.0, "extreme": 0.7, "short": 0.7, "equal": 0.7, "shift": 0.0}
STORED = (
    *("wide-0", "wide-1", "wide-2", "tiny-0", "tiny-1", "far-0", "far-1"),
    *("extreme-0", "short-0", "equal-0", "shift-0", "shift-1"),
)
# Planted at (response, token) of `extreme`.
TO_OLD: Planted = {
    (0, 0): 5.0,
    (0, 1): 25.0,
    (1, 0): 25.0,
    (2, 0): -25.0,
    (3, 1): -60.0,
    (5, 0): 60.0,
    (6, 1): 22.0,
}
TO_REF: Planted = {(1, 1): 25.0, (4, 0): -25.0, (7, 0): 5.0, (8, 0): -5.0}
SIGNED = {0: -1.0, 1: -1.0, 2: 1.0, 5: -0.5}  # advantages of those responses


def make_case(name: str) -> dict[str, list[Any]]:
    """The case `kind-seed`; padding holds ordinary numbers, because JSON has no NaN."""
    kind, draw = name.partition("-")[0], random.Random(f"parity-{name}")
    advantages = [round((-1) ** row * abs(draw.gauss(0, 1)), 3) for row in range(ROWS)]
    advantages[4] = 0.0
    rewards = make_rewards(kind, draw)
    lengths = [1 if kind == "short" and draw.random() < 0.7 else draw.randint(1, TOKENS) for _ in range(ROWS)]
    if name == "tiny-0":
        lengths[-1] = 0  # a response without any kept token
    if kind == "extreme":
        lengths = [max(2, length) for length in lengths]
        lengths[0] = 2  # its mean log-ratio is 15, beyond one peer's bound on sequences
        lengths[5] = 2  # about 30, beyond etr's
        advantages = [SIGNED.get(row, advantage) for row, advantage in enumerate(advantages)]
    planted = kind == "extreme"
    shift = round(draw.uniform(-0.5, 0.5), 2) if kind == "shift" else 0.0
    to_old = noise(draw, NOISE[kind], TO_OLD if planted else {}, shift)
    to_ref, to_rollout = noise(draw, 0.5, TO_REF if planted else {}), noise(draw, 0.3)
    # Shifted down so that all log-probabilities stay below 0.
    log_probs = [
        [round(-draw.expovariate(1.0) - 0.001 + min(0.0, o, r, o + w), DIGITS) for o, r, w in zip(*rows, strict=True)]
        for rows in zip(to_old, to_ref, to_rollout, strict=True)
    ]
    old_log_probs = minus(log_probs, to_old)
    return {
        "rewards": rewards,
        "components": [[reward, round(draw.choice((0.0, 0.25, 1.0)), 3)] for reward in rewards],
        "group_ids": [row // GROUP for row in range(ROWS)],
        "advantages": advantages,
        "response_mask": [[int(t < length) for t in range(TOKENS)] for length in lengths],
        "log_probs": log_probs,
        "old_log_probs": old_log_probs,
        "ref_log_probs": minus(log_probs, to_ref),
        "rollout_log_probs": minus(old_log_probs, to_rollout),
        "entropy": [
            [draw.randint(1, 4096) / 2048 for _ in range(TOKENS)] for _ in range(ROWS)
        ],  # exact in any precision
        "values": [[round(draw.uniform(0.0, 1.0), 3) for _ in range(TOKENS)] for _ in range(ROWS)],
    }


def make_rewards(kind: str, draw: random.Random) -> list[float]:
    """Mostly 0 or 1, a part of them in every case; equal within the first two groups of `equal`."""
    rewards = [float(draw.random() < 0.5) for _ in range(ROWS)]
    rewards[2 * GROUP :] = [round(draw.random(), 2) for _ in range(GROUP)]
    if kind == "equal":
        rewards[: 2 * GROUP] = [1.0] * GROUP + [0.0] * GROUP
    return rewards


def noise(draw: random.Random, scale: float, planted: Planted | None = None, shift: float = 0.0) -> Matrix:
    """Normal draws `[12, 7]` around `shift`, with some places set by hand."""
    at = planted or {}
    return [[round(at.get((i, t), shift + draw.gauss(0, scale)), DIGITS) for t in range(TOKENS)] for i in range(ROWS)]


def minus(a: Matrix, b: Matrix) -> Matrix:
    """The difference of each pair of entries."""
    return [[round(x - y, DIGITS) for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
