"""The last law: the objective must learn."""

from __future__ import annotations

import torch

from etr.batch import Batch
from etr.groups import group_stats
from etr.laws.base import holds, law
from etr.loss import policy_loss
from etr.objective import Objective


@law
def learns_a_bandit(objective: Objective) -> None:
    """14. Finds the best of three arms (success 0.2, 0.5, 0.9) in 8 of 8 seeds."""
    rng, success = torch.Generator().manual_seed(0), torch.tensor([0.2, 0.5, 0.9])
    logits, ids = torch.zeros(8, 1, 3, requires_grad=True), torch.arange(4).repeat_interleave(16)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    state = objective.init_state((8,), logits.device)
    for _ in range(60):
        with torch.no_grad():
            old = logits.log_softmax(-1).expand(8, 64, 3)
            arms = torch.multinomial(old[:, 0].exp(), 64, replacement=True, generator=rng).unsqueeze(-1)
            rewards = (torch.rand(8, 64, generator=rng) < success[arms.squeeze(-1)]).float()
        for _ in range(2):
            current = logits.log_softmax(-1).expand(8, 64, 3).gather(-1, arms)
            old_taken = old.gather(-1, arms)
            batch = Batch(current, old_taken, torch.ones_like(arms, dtype=torch.bool),
                          objective.advantage(rewards, ids), group_stats(rewards, ids),
                          ref_log_probs=old_taken, rollout_log_probs=old_taken, entropy=-old_taken)  # fmt: skip
            batch, state = objective.prepare(batch, state)
            optimizer.zero_grad()
            policy_loss(objective, batch, check=False).loss.sum().backward()
            optimizer.step()
    best = logits.detach().softmax(-1)[..., 2]  # only read
    holds("after 60 steps the best arm must have probability > 0.6", best > 0.6, best)
