"""First-order entropy change of a group-relative update, token by token: what each sampled token is to blame for.

With logit step dz = η·r·A·(1_k − π) for a sampled token k (2602.03392; the identities of one state are in `entropy`):

    dH = −η·r·A·(S_k − B),   S_k = π_k (H + ln π_k),   B = Σ_v π_v² (H + ln π_v) = E_{k∼π} S_k
"""

from __future__ import annotations

from torch import Tensor

from etr.oracles.entropy import sampled_token_push


def update_change(logits: Tensor, tokens: Tensor, coefficient: Tensor) -> Tensor:
    """dH/dη of each token's own step, −c·(S_k − B) with c = r·A (`etr.gradient_coefficient`), nats, `[*R]`.

    logits: `[*R, V]`; tokens: sampled ids k, int64 `[*R]`; coefficient: `[*R]`. Its mean over k ∼ π is 0 for a c that
    does not depend on k. Evidence: verified (published code; against differences by test).
    """
    push = sampled_token_push(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return coefficient.double() * push


def quadrant(log_prob: Tensor, entropy: Tensor, advantage: Tensor) -> Tensor:
    """The sign of dH without the baseline B: −sign(A)·sign(ln π_k + H), in {−1, 0, 1}.

    A likely token (−ln π < H) rewarded or a rare one punished lowers the entropy, the other two raise it. Evidence:
    third-party. It is wrong where S_k lies between 0 and B.

    >>> import torch
    >>> h = torch.tensor(1.0)
    >>> [int(quadrant(torch.tensor(l), h, torch.tensor(a))) for l in (-0.1, -3.0) for a in (1.0, -1.0)]
    [-1, 1, 1, -1]
    """
    return -advantage.sign() * (log_prob + entropy).sign()
