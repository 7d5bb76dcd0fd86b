"""Expected gradients of objectives that need a critic, turns, clusters or reward components, against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import etr
from etr.errors import InputError
from etr.oracles.estimator import gradient_moments
from etr.oracles.groups import enumerate_groups
from toy_envs import ExactModel

PARTS = torch.tensor([[[0.0, 0.3, 1.0, 0.8], [0.5, 1.0, 0.0, 0.6]]], dtype=torch.float64)
RICH = ExactModel(
    2,
    2,
    (2 * PARTS[:, 0] + PARTS[:, 1]) / 3,
    components=PARTS,
    scales=(2.0, 1.0),
    clusters=torch.tensor([[0, 3, 3, 1]]),
    turns=(0, 1),
)


def random_logits(model: ExactModel, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(model.prompts, model.states, model.vocab_size, generator=rng, dtype=torch.float64)


class Curious(etr.Objective):
    """Weights every token by all inputs that only some environments have."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"values", "turns", "clusters", "components"})

    def surrogate(self, batch: etr.Batch, log_ratio: Tensor, region: etr.Region) -> Tensor:
        assert batch.values is not None and batch.turns is not None
        assert batch.clusters is not None and batch.components is not None
        own = (
            batch.advantages + 0.1 * batch.clusters.double() + batch.components[..., 0] - 0.5 * batch.components[..., 1]
        )
        return (own.unsqueeze(-1) + 0.7 * batch.values + 0.2 * batch.turns.double()) * log_ratio.exp()


def test_critic_turns_clusters_and_parts_by_plain_loops() -> None:
    """All ordered pairs of (answer, outcome): E g = Σ P · ½ Σ_rows ½ Σ_t w (e_a − π), in floats."""
    logits = random_logits(RICH, 0)
    rows = [[math.exp(z) for z in row] for row in logits[0].tolist()]
    policy = [[w / sum(row) for w in row] for row in rows]
    pays = RICH.success[0].tolist()
    critic = [0.0, *(sum(policy[1 + a][b] * pays[2 * a + b] for b in range(2)) for a in range(2))]
    critic[0] = sum(policy[0][a] * critic[1 + a] for a in range(2))
    members = []  # probability, reward, (state, token) by time, cluster, parts
    for number, (a, b) in enumerate(itertools.product(range(2), repeat=2)):
        for first, second in itertools.product((0, 1), repeat=2):
            chance = policy[0][a] * policy[1 + a][b]
            for part, one in enumerate((first, second)):
                p = PARTS[0, part, number].item()
                chance *= p if one else 1 - p
            members.append(
                (chance, (2 * first + second) / 3, ((0, a), (1 + a, b)), [0, 3, 3, 1][number], (first, second))
            )
    want = [[0.0, 0.0] for _ in range(3)]
    for pair in itertools.product(members, repeat=2):
        mean = (pair[0][1] + pair[1][1]) / 2
        spread = abs(pair[0][1] - pair[1][1]) / 2
        for _, reward, path, cluster, (first, second) in pair:
            advantage = (reward - mean) / spread if spread else 0.0
            for turn, (state, token) in enumerate(path):
                weight = advantage + 0.1 * cluster + first - 0.5 * second + 0.7 * critic[state] + 0.2 * turn
                for k in range(2):
                    score = (k == token) - policy[state][k]
                    want[state][k] += pair[0][0] * pair[1][0] * weight * score / 4
    found = gradient_moments(Curious(), RICH, logits, 2)
    torch.testing.assert_close(found.mean, torch.tensor(want, dtype=torch.float64), rtol=0.0, atol=1e-13)
    assert enumerate_groups(logits, RICH, 2).probability.sum().item() == pytest.approx(1.0, abs=1e-13)


def test_a_verdict_of_ones_own_has_no_parts_and_a_bandit_no_turns() -> None:
    logits = random_logits(RICH, 1)
    rewards = enumerate_groups(logits, RICH, 2, verdict=RICH.success).rewards
    assert set(rewards.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(InputError, match=r"the reward in its parts \(components=...\), which this batch does not have"):
        gradient_moments(Curious(), RICH, logits, 2, verdict=RICH.success)
    bandit = ExactModel(2, 1, torch.tensor([[0.2, 0.9]], dtype=torch.float64))
    with pytest.raises(InputError, match="the number of each token's turn"):
        gradient_moments(Curious(), bandit, torch.zeros(1, 1, 2), 2)
