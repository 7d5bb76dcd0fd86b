"""The inputs that every peer is given: seeded ragged batches `[12, 7]` of three prompts with four responses.

Standard library only; numbers are written in full precision, so all peers and etr start from the same bits:

    python tests/peers/cases.py > tests/peers/cases.json
"""

from __future__ import annotations

import json
import random
from typing import Any

Planted = dict[tuple[int, int], float]
Matrix = list[list[float]]
ROWS, TOKENS, GROUP = 12, 7, 4
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]  # one right, all right, half right
# Standard deviation of log π/π_old. wide: clips of 0.2 bite on both sides; tiny: clips of 3e-4 bite partly;
# extreme: wide, with the outliers below planted at (response, token).
NOISE = {"wide": 0.7, "tiny": 1e-3, "extreme": 0.7}
LOG_RATIO: Planted = {
    (0, 0): 5.0,
    (0, 1): 25.0,
    (1, 0): 25.0,
    (2, 0): -25.0,
    (3, 1): -60.0,
    (5, 0): 60.0,
    (6, 1): 22.0,
}
LOG_RATIO_TO_REF: Planted = {(1, 1): 25.0, (4, 0): -25.0, (7, 0): 5.0, (8, 0): -5.0}


def make_case(name: str) -> dict[str, list[Any]]:
    """One case; padding holds ordinary numbers, because JSON has no NaN."""
    draw = random.Random(f"parity-{name}")
    advantages = [(-1) ** row * abs(draw.gauss(0, 1)) for row in range(ROWS)]
    lengths = [draw.randint(2, TOKENS) for _ in range(ROWS)]
    advantages[4] = 0.0
    if name == "tiny":
        lengths[-1] = 0  # a response without any kept token
    if name == "extreme":
        lengths[0] = 2  # its mean log-ratio is 15, beyond one peer's bound on sequences
        for row, advantage in {0: -1.0, 1: -1.0, 2: 1.0, 5: -0.5}.items():
            advantages[row] = advantage
    planted = name == "extreme"
    to_old = noise(draw, NOISE[name], LOG_RATIO if planted else {})
    to_ref = noise(draw, 0.5, LOG_RATIO_TO_REF if planted else {})
    # Shifted down so that all three log-probabilities stay below 0.
    log_probs = [
        [-draw.expovariate(1.0) + min(0.0, o, r) for o, r in zip(*rows, strict=True)]
        for rows in zip(to_old, to_ref, strict=True)
    ]
    return {
        "rewards": REWARDS,
        "group_ids": [row // GROUP for row in range(ROWS)],
        "advantages": advantages,
        "response_mask": [[int(t < length) for t in range(TOKENS)] for length in lengths],
        "log_probs": log_probs,
        "old_log_probs": minus(log_probs, to_old),
        "ref_log_probs": minus(log_probs, to_ref),
    }


def noise(draw: random.Random, scale: float, planted: Planted) -> Matrix:
    """Normal draws `[12, 7]` with some places set by hand."""
    return [[planted.get((i, t), draw.gauss(0, scale)) for t in range(TOKENS)] for i in range(ROWS)]


def minus(a: Matrix, b: Matrix) -> Matrix:
    """The difference of each pair of entries."""
    return [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


if __name__ == "__main__":
    print(json.dumps({name: make_case(name) for name in NOISE}))
