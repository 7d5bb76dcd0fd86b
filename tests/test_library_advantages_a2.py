"""Token weights, sets of answers and bundles (empg, aepo_agentic, arm, oar, dsdr, gtpo, riskpo, ...) by hand."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from statistics import fmean, pstdev, stdev

import numpy as np
import pytest
import torch
from test_library_advantages_a import double, make, padded, shaped
from torch import Tensor

import etr
from etr import sequences
from etr.batch import Batch
from etr.errors import FieldError, InputError
from etr.laws import random_batch
from etr.laws.base import run
from etr.recipe import load_recipe
from etr.toy.train import ToyConfig, train
from toy_envs import make_model


def test_empg_by_turns() -> None:
    """Entropies .2 .4 | 1 and .3: steps h = .3, 1, .3, so h~ = 0, 1, 0; A = 1 and −1 for R = 1, 0."""
    objective = etr.get("empg", kappa=2.0, kappa_next=3.0, zeta=0.5)
    batch = make(
        objective,
        [1.0, 0.0],
        2,
        [3, 1],
        turns=torch.tensor([[4, 4, 6], [2, 9, 9]]),
        entropy=torch.tensor([[0.2, 0.4, 1.0], [0.3, math.nan, math.nan]], dtype=torch.float64),
    )
    calm = [1.0, math.exp(-2.0), 1.0]
    steps = [x / fmean(calm) * a for x, a in zip(calm, (1, 1, -1), strict=True)]
    steps[0] += 0.5 * math.exp(-3.0)  # the step that leads to the one of h~ = 1; the last of a response has no bonus
    want = [x - fmean(steps) for x in steps]
    torch.testing.assert_close(shaped(objective, batch), padded([[want[0], want[0], want[1]], [want[2]]]))


def test_empg_of_single_turns_only_rescales() -> None:
    """One step a response: the factors have mean 1 over responses, however long, and there is no bonus."""
    objective = etr.get("empg", zeta=9.0, center=False)
    entropy = padded([[0.1, 0.3], [0.9], [0.5, 0.4], [0.0]])
    more = {"turns": torch.zeros(4, 2, dtype=torch.long), "entropy": entropy}
    ones = torch.ones(4, dtype=torch.float64)
    got = shaped(objective, make(objective, [1.0, 0.0, 0.0, 1.0], 4, [2, 1, 2, 1], **more, advantages=ones))[:, 0]
    assert got.mean().item() == pytest.approx(1.0)
    levels = [0.2 / 0.9, 1.0, 0.45 / 0.9, 0.0]
    assert (got / got[3]).tolist() == pytest.approx([math.exp(-x) for x in levels])


def test_aepo_entropy_advantage() -> None:
    """H = 1, 2, 3 and 2 over four tokens: mean 2, std √.5; the factors have mean 1."""
    objective = etr.get("aepo_agentic", entropy_weight=0.3)
    batch = make(objective, [1.0, 0.0], 2, [3, 1], entropy=padded([[1.0, 2.0, 3.0], [2.0]]))
    z = 1 / math.sqrt(0.5)
    torch.testing.assert_close(shaped(objective, batch), padded([[1 - 0.3 * z, 1.0, 1 + 0.3 * z], [-1.0]]))
    flat = make(objective, [1.0, 0.0], 2, [3, 1], entropy=padded([[2.0] * 3, [2.0]]))
    torch.testing.assert_close(shaped(objective, flat), padded([[1.0] * 3, [-1.0]]))  # no token stands out


def test_aepo_keeps_the_gradient_above_the_region() -> None:
    """r = 2, A = 1: the value is PPO's 1.2 and c = 1.2; r = 2, A = −1 and r = ½ are PPO."""
    objective = etr.get("aepo_agentic", entropy_weight=0.0)
    for r, wanted in ((2.0, [(1.2, 1.2), (-2.0, -2.0)]), (0.5, [(0.5, 0.5), (-0.8, 0.0)])):
        batch = make(objective, [1.0, 0.0], 2, [1, 1], entropy=torch.ones(2, 1))
        batch = Batch(**{**vars(batch), "log_probs": batch.old_log_probs + math.log(r)})
        values = etr.policy_loss(objective, batch).per_token[:, 0]
        slopes = etr.gradient_coefficient(objective, batch)[:, 0]
        assert list(zip(values.tolist(), slopes.tolist(), strict=True)) == [pytest.approx(w) for w in wanted]


def test_arm_takes_confidence_away() -> None:
    """Two tokens of five at share .4: the unlikeliest, .1 and .4, give √.04 = .2; alone it is the token itself."""
    chances = [[0.9, 0.1, 0.5, 0.4, 0.8], [0.6], [0.3], [0.5]]
    old = padded(chances).log()
    rewards = [1.0, 0.0, 1.0, 1.0]
    objective = etr.get("arm", alpha=0.5, share=0.4, prompt_confidence=0.9)
    got = shaped(objective, make(objective, rewards, 2, [5, 1, 1, 1], old_log_probs=old, log_probs=old))[:, 0]
    assert got.tolist() == pytest.approx([1 + 0.5 * (0.9 - 0.2), -1 + 0.5 * (0.9 - 0.6), 0.0, 0.0])
    usual = etr.get("arm", alpha=0.5, share=0.2)
    got = shaped(usual, make(usual, rewards, 2, [5, 1, 1, 1], old_log_probs=old, log_probs=old))[:, 0]
    assert got.tolist() == pytest.approx([1 + 0.5 * (0.35 - 0.1), -1 + 0.5 * (0.35 - 0.6), 0.0, 0.0])
    assert got[:2].sum().item() == pytest.approx(0.0)  # relative to the group's mean, the mean stays


def test_oar_weights() -> None:
    """n = 0, .1, .25, 1 with θ = .25: .1 (the floor), .4, 1, 2; no token more decisive than another: 1."""
    objective = etr.get("oar")
    influence = padded([[2.0, 2.1, 2.25, 3.0], [0.7, 0.7]])
    got = shaped(objective, make(objective, [1.0, 0.0], 2, [4, 2], influence=influence))
    torch.testing.assert_close(got, padded([[0.1, 0.4, 1.0, 2.0], [-1.0, -1.0]]))
    strong = etr.get("oar", boost=3.0, floor=0.5)
    weights = (shaped(strong, random_batch(strong)) / random_batch(strong).token_advantages)[
        random_batch(strong).response_mask
    ]
    finite = weights[weights.isfinite()]  # where A = 0 nothing can be told
    assert finite.min() == pytest.approx(0.5) and finite.max() == pytest.approx(4.0)


WORDS = torch.tensor([[1, 2, 2], [1, 3, 9], [1, 2, 9], [4, 9, 9]])
LENGTHS = [3, 2, 2, 1]


def test_dissimilarity() -> None:
    """Sets {1,2}, {1,3}, {1,2}, {4}: from the first 2/3, 0, 1; and what is behind one's own beginning."""
    mask, ids = torch.arange(3) < torch.tensor(LENGTHS).unsqueeze(-1), torch.zeros(4, dtype=torch.long)
    distance = sequences.set_distance(WORDS, mask, ids)
    assert distance.tolist() == pytest.approx([(2 / 3 + 0 + 1) / 3, (2 / 3 + 2 / 3 + 1) / 3, (2 / 3 + 0 + 1) / 3, 1.0])
    # 1 2 2 is alone only at its third token, where the other 1 2 has ended; 1 3 from the second; 4 at once.
    assert sequences.own_share(WORDS, mask, ids).tolist() == pytest.approx([1 / 3, 1 / 2, 0.0, 1.0])
    apart = sequences.dissimilarity(WORDS, mask, torch.tensor([0, 0, 1, 1]))
    assert apart.tolist() == pytest.approx([(2 / 3 + 2 / 3) / 2, (2 / 3 + 1 / 2) / 2, 1.0, 1.0])


def test_dsdr_rewards_right_answers_that_differ() -> None:
    objective = etr.get("dsdr", bonus=0.5, local=0.0, cap=0.4)
    got = shaped(objective, make(objective, [1.0, 1.0, 1.0, 0.0], 4, LENGTHS, tokens=WORDS))[:, 0]
    d = [(5 / 9 + 1 / 3) / 2, (7 / 9 + 1 / 2) / 2, (5 / 9 + 0) / 2]
    rewards = [1 + 0.5 * min(x, 0.4) for x in d] + [0.0]  # the wrong one gets nothing for being different
    assert got.tolist() == pytest.approx([(r - fmean(rewards)) / pstdev(rewards) for r in rewards])


def test_dsdr_local_term() -> None:
    """λ·Σ w·(1/T)·Σ r·log π over right answers, w their softmax of τ·d; gradient λ·w·r·(log π + 1)/T, by hand."""
    objective = etr.get("dsdr", bonus=0.0, local=0.1, tau=2.0)
    batch = make(
        objective, [1.0, 1.0, 1.0, 0.0], 4, LENGTHS, tokens=WORDS, advantages=torch.zeros(4, dtype=torch.float64)
    )
    batch = objective.prepare(batch, {})[0]
    leaf = (batch.old_log_probs + 0.3).requires_grad_()
    zero = torch.zeros(4, dtype=torch.float64)  # the surrogate has no part in the loss
    loss = etr.policy_loss(objective, Batch(**{**vars(batch), "log_probs": leaf, "advantages": zero})).loss
    d = [(5 / 9 + 1 / 3) / 2, (7 / 9 + 1 / 2) / 2, (5 / 9 + 0) / 2]
    pull = [math.exp(2 * x) for x in d]
    w, r, log_pi = [x / sum(pull) for x in pull] + [0.0], math.exp(0.3), -1.7
    assert loss.item() == pytest.approx(0.1 * sum(w) * r * log_pi)
    slopes = [[0.1 * w[i] * r * (log_pi + 1) / n] * n for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], padded(slopes))


def test_dsdr_local_term_is_an_entropy() -> None:
    """Σ_a π_old(a)·(−r·log π) is the entropy of π, wherever π_old is, and so is its gradient."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, dtype=torch.float64, generator=rng).requires_grad_()
    old, log_pi = torch.randn(4, dtype=torch.float64, generator=rng).log_softmax(-1), logits.log_softmax(-1)
    objective = etr.get("dsdr", bonus=0.0, local=1.0, tau=0.0)
    batch = make(
        objective, [1.0] * 4, 4, [1] * 4, tokens=torch.arange(4).unsqueeze(-1), old_log_probs=old.unsqueeze(-1)
    )
    batch = objective.prepare(batch, {})[0]
    penalty = objective.regularizer(Batch(**{**vars(batch), "log_probs": log_pi.unsqueeze(-1)}))
    assert penalty is not None
    expected, entropy = (old.exp() * penalty[:, 0]).sum(), -(log_pi.exp() * log_pi).sum()
    assert expected.item() == pytest.approx(-entropy.item())
    found, want = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (expected, -entropy))
    torch.testing.assert_close(found, want)


TALK = torch.tensor([[5, 6, 1, 8], [5, 6, 2, 8], [5, 7, 8, 0], [5, 9, 3, 8]])


def talk(**more: float | bool) -> Tensor:
    """R = 1, 0, 0 and one right answer more; entropies .5; tokens a b x z | a b y z | a c z | a d w z."""
    objective = etr.get("gtpo", gamma=0.0, **more)
    entropy = torch.full((4, 4), 0.5, dtype=torch.float64)
    return shaped(objective, make(objective, [1.0, 0.0, 0.0, 1.0], 4, [4, 4, 3, 4], tokens=TALK, entropy=entropy))


def test_gtpo_conflict_tokens() -> None:
    """Beginning: a is shared by both sides, b too, c, d and what follows is not. Ending: z is, x, y, c, w are not."""
    right, wrong = [2.0, 2.0, 1.0, 2.0], [0.0, 0.0, -1.0, 0.0]
    torch.testing.assert_close(talk(), padded([right, wrong, [0.0, -1.0, 0.0], [2.0, 1.0, 1.0, 2.0]]))
    counted = talk(per_conflict=True)  # 3, 3, 2 and 2 conflict tokens
    torch.testing.assert_close(counted[0], double(right) / 3)
    torch.testing.assert_close(counted[2], double([0.0, -0.5, 0.0, 0.0]))
    half = talk(right_weight=1.3, wrong_weight=0.3)
    torch.testing.assert_close(half[:2], double([[1.3, 1.3, 1.0, 1.3], [-0.3, -0.3, -1.0, -0.3]]))


def test_gtpo_drops_what_is_too_random() -> None:
    """δ·(A − γ·H̄): H̄ = .5 and .9 against ln 2; a first batch above ln 2 switches the filter off for good."""
    objective = etr.get("gtpo", gamma=0.1)
    tokens = torch.arange(4).unsqueeze(-1)

    def batch(*entropy: float) -> Batch:
        column = double(entropy).unsqueeze(-1)
        return make(objective, [1.0, 1.0, 0.0, 0.0], 4, [1] * 4, tokens=tokens, entropy=column)

    calm, state = objective.prepare(batch(0.5, 0.9, 0.5, 0.5), objective.init_state((), torch.device("cpu")))
    assert calm.token_advantages[:, 0].tolist() == pytest.approx([1 - 0.05, 0.0, -1 - 0.05, -1 - 0.05])
    later, state = objective.prepare(batch(0.9, 0.9, 0.9, 0.5), state)
    assert later.token_advantages[:, 0].tolist() == pytest.approx([0.0, 0.0, 0.0, -1.05])
    wild, state = objective.prepare(batch(0.9, 0.9, 0.9, 0.5), objective.init_state((), torch.device("cpu")))
    assert wild.token_advantages[:, 0].tolist() == pytest.approx([0.91, 0.91, -1.09, -1.05])
    after, _ = objective.prepare(batch(0.1, 0.1, 0.1, 0.9), state)
    assert after.token_advantages[3, 0].item() == pytest.approx(-1.09)


# Two prompts of three responses: papers (1, 0), (1, 1), (0, 0) score S = 1, 2, 0.
PAPERS = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
SCORES = [1.0, 2.0, 0.0]


def paper_values(low: float, high: float, d: float = 0.2, u: float = 0.8) -> list[float]:
    middle = [(max(s - low, 0) - max(s - high, 0)) / (u - d) for s in SCORES]
    return [(1.5 * -max(low - s, 0) / d + m) / 2.5 for s, m in zip(SCORES, middle, strict=True)]


def test_riskpo_credits() -> None:
    """Quantiles .4 and 1.6 of S = 0, 1, 2; std 1; rewards less their prompt's mean: 1/3 1/3 −2/3 and −1/3 2/3 −1/3."""
    a = paper_values(0.4, 1.6)
    far = [1 / 3, 1 / 3, -2 / 3, -1 / 3, 2 / 3, -1 / 3]
    whole = [far[j] + far[j + 3] for j in range(3)]  # 0, 1 and −1: the first is shared equally
    shares = [far[i] / whole[i % 3] if i % 3 else 0.5 for i in range(6)]
    want = {"uniform": a * 2, "sum-mean": [a[i % 3] * shares[i] for i in range(6)]}
    want["std"] = [a[i % 3] / stdev(PAPERS[:3] if i < 3 else PAPERS[3:]) for i in range(6)]
    for credit, values in want.items():
        objective = etr.get("riskpo", mode="batch", credit=credit)
        assert shaped(objective, make(objective, PAPERS, 3, [1] * 6))[:, 0].tolist() == pytest.approx(values)
    seeking = etr.get("riskpo", mode="batch", credit="uniform", upper=2.0, natural_baseline=True)
    middle = [(max(s - 0.4, 0) - max(s - 1.6, 0) + 0.4 - 1.6) / 0.6 for s in SCORES]
    values = [(2 * max(s - 1.6, 0) / 0.2 + m) / 3 for s, m in zip(SCORES, middle, strict=True)]
    assert shaped(seeking, make(seeking, PAPERS, 3, [1] * 6))[:3, 0].tolist() == pytest.approx(values)
    with pytest.raises(FieldError, match="0 < low < high < 1"):
        etr.get("riskpo", low=0.8, high=0.2)


def test_riskpo_tracks_quantiles() -> None:
    """First batch: its own quantiles, .4 and 1.6. Then q moves by .1·(level − share below): S = 0, 1, 2."""
    objective = etr.get("riskpo", credit="uniform")
    batch = make(objective, PAPERS, 3, [1] * 6)
    first, state = objective.prepare(batch, objective.init_state((), torch.device("cpu")))
    assert first.advantages[:3].tolist() == pytest.approx(paper_values(0.4, 1.6))
    assert [state[name].item() for name in ("low", "high", "seen")] == pytest.approx([0.4, 1.6, 1.0])
    _, state = objective.prepare(batch, state)  # 1/3 of the papers below .4, 2/3 below 1.6
    low, high = 0.4 + 0.1 * (0.2 - 1 / 3), 1.6 + 0.1 * (0.8 - 2 / 3)
    assert [state["low"].item(), state["high"].item()] == pytest.approx([low, high])
    third, _ = objective.prepare(batch, state)
    assert third.advantages[:3].tolist() == pytest.approx(paper_values(low, high))
    mixed, _ = etr.get("riskpo", mode="mix", credit="uniform").prepare(batch, state)
    assert mixed.advantages[:3].tolist() == pytest.approx(paper_values((low + 0.4) / 2, (high + 1.6) / 2))


def test_riskpo_bundles() -> None:
    """Five prompts at two to a bundle: 3 and 2 by their ids, also where the groups are interleaved."""
    objective = etr.get("riskpo", mode="batch", credit="uniform", bundle=2, scale=False)
    rewards = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    batch = objective.prepare(make(objective, rewards, 2, [1] * 10), objective.init_state((), torch.device("cpu")))[0]
    assert batch.columns["riskpo_score"].tolist() == [2.0, 1.0] * 3 + [0.0, 1.0] * 2
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    mixed = objective.prepare(make(objective, rewards, 2, [1] * 10).rows(torch.tensor(order)), batch_state(objective))[
        0
    ]
    torch.testing.assert_close(mixed.advantages, batch.advantages[order])


def batch_state(objective: etr.Objective, runs: Sequence[int] = ()) -> dict[str, Tensor]:
    return objective.init_state(tuple(runs), torch.device("cpu"))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_polychromic_over_all_sets(n: int) -> None:
    """Against every n-subset of groups of 5, counted one by one."""
    rewards, clusters = [1.0, 1.0, 0.0, 0.5, 0.0, *[1.0] * 5], [0, 0, 1, 2, 1, 3, 3, 3, 4, 5]
    objective = etr.get("polychromic", set_size=n)
    got = shaped(objective, make(objective, rewards, 5, [1] * 10, clusters=torch.tensor(clusters)))[:, 0]
    want = []
    for group in (range(5), range(5, 10)):
        sets = list(itertools.combinations(group, n))
        f = [fmean(rewards[i] for i in s) * len({clusters[i] for i in s}) / n for s in sets]
        want += [fmean(x for x, s in zip(f, sets, strict=True) if i in s) - fmean(f) for i in group]
    assert got.tolist() == pytest.approx(want, abs=1e-12)
    if n == 5:
        assert got.abs().max() < 1e-12  # one set only
        with pytest.raises(InputError, match="raise group_size"):
            shaped(objective, make(objective, rewards[:4], 4, [1] * 4, clusters=torch.tensor(clusters[:4])))


def test_polychromic_keeps_several_arms() -> None:
    """Its optimum on arms of success .9, .5, .2 at n = 2: max over π of Σ π(a)π(b)·(p_a + p_b)/2·(1 + [a ≠ b])/2."""
    p, grid = np.array([0.9, 0.5, 0.2]), np.linspace(0, 1, 101)
    value = (p[:, None] + p) / 2 * np.where(np.eye(3, dtype=bool), 0.5, 1.0)
    best = max(((x, y, 1 - x - y) for x in grid for y in grid if x + y <= 1), key=lambda pi: np.array(pi) @ value @ pi)
    assert 0.4 < best[0] < 0.75 and best[1] > 0.2


STATEFUL = [("gtpo", {"max_entropy": 1.1}), ("riskpo", {}), ("riskpo", {"mode": "mix", "credit": "std", "bundle": 2})]


@pytest.mark.parametrize(("name", "fields"), STATEFUL)
def test_state_resumes_and_vectorises(name: str, fields: dict[str, object]) -> None:
    """Four batches with the state saved after two: the same bits; three runs at once: each as alone."""
    objective = etr.get(name, **fields)
    batches = [random_batch(objective, runs=(3,), seed=seed) for seed in range(4)]
    state, alone = batch_state(objective, [3]), [batch_state(objective) for _ in range(3)]
    saved, kept = io.BytesIO(), []
    for step, batch in enumerate(batches):
        before = {k: v.clone() for k, v in state.items()}
        prepared, after = objective.prepare(batch, state)
        assert all(torch.equal(state[k], before[k]) for k in state)  # never changed in place
        state = after
        kept.append(prepared.token_advantages)
        for i in range(3):
            one, alone[i] = objective.prepare(run(batch, i), alone[i])
            torch.testing.assert_close(one.token_advantages, prepared.token_advantages[i])
            assert all(torch.allclose(alone[i][k], state[k][i]) for k in state)
        if step == 1:
            torch.save(state, saved)
    saved.seek(0)
    resumed = torch.load(saved)
    for batch, want in zip(batches[2:], kept[2:], strict=True):
        prepared, resumed = objective.prepare(batch, resumed)
        assert torch.equal(prepared.token_advantages, want)
    assert all(torch.equal(resumed[k], state[k]) for k in state)


NAMES = [
    "rloo",
    "optimal_baseline",
    "optimal_token_baseline",
    "opo",
    "empg",
    "aepo_agentic",
    "arm",
    "seed_grpo",
    "riskpo",
]
NAMES += ["gtpo", "copo", "dsdr", "polychromic", "adora", "gdpo", "oar"]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
@pytest.mark.parametrize("name", NAMES)
def test_trains(name: str, env: str) -> None:
    """Fifty iterations of four seeds end finite, and away from where they started."""
    history = train(load_recipe(name), make_model(env), ToyConfig(iterations=50, group_size=8, seeds=4))
    assert torch.isfinite(history.logits).all() and (history.logits != 0).any()
    assert all(torch.isfinite(curve).all() for key, curve in history.curves.items() if key in ("reward", "entropy"))
