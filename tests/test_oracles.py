"""Oracles against brute-force loops, finite differences, pseudo-inverses and Monte Carlo."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

import etr
from etr import exact
from etr.errors import InputError
from etr.oracles import divergences, entropy, estimator, fisher
from etr.oracles.estimator import gradient_moments
from etr.oracles.groups import enumerate_groups, sequence_places
from toy_envs import ExactModel

BANDIT = ExactModel(3, 1, torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64))
CERTAIN = ExactModel(4, 1, torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64))
TREE = ExactModel(2, 2, torch.tensor([[0.1, 0.8, 0.3, 0.6]], dtype=torch.float64))
DEEP = ExactModel(3, 3, torch.rand(2, 27, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


def random_logits(model: ExactModel, seed: int, *lead: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((*lead, model.prompts, model.states, model.vocab_size), generator=rng, dtype=torch.float64)


def sequence_probs(logits: Tensor, model: ExactModel) -> list[float]:
    """π(y) of every sequence of a single prompt, by loops; logits `[S, V]`."""
    result = []
    for tokens in itertools.product(range(model.vocab_size), repeat=model.horizon):
        chance, state, level = 1.0, 0, 0
        for t, token in enumerate(tokens):
            row = [math.exp(z) for z in logits[level + state].tolist()]
            chance *= row[token] / sum(row)
            level, state = level + model.vocab_size**t, state * model.vocab_size + token
        result.append(chance)
    return result


# Exact quantities beyond values ---------------------------------------------------------------------------------------


def test_advantages_have_mean_zero_and_give_the_performance_difference() -> None:
    """J(π') − J(π) = Σ_s d'(s) Σ_a π'(a|s) A_π(s, a) (Kakade & Langford 2002), with no approximation."""
    logits, other = random_logits(DEEP, 0, 2), random_logits(DEEP, 1, 2)
    found = exact.advantages(logits, DEEP)
    assert (logits.softmax(-1) * found).sum(-1).abs().max() < 1e-14
    gained = exact.state_visits(other, DEEP).unsqueeze(-1) * other.softmax(-1) * found
    difference = exact.expected_reward(other, DEEP) - exact.expected_reward(logits, DEEP)
    torch.testing.assert_close(gained.sum((-2, -1)), difference, rtol=0.0, atol=1e-14)


def test_state_entropy_is_that_of_each_row() -> None:
    logits = random_logits(DEEP, 2)
    for prompt, state in itertools.product(range(2), range(DEEP.states)):
        weights = [math.exp(z) for z in logits[prompt, state].tolist()]
        probs = [w / sum(weights) for w in weights]
        want = -sum(p * math.log(p) for p in probs)
        assert exact.state_entropy(logits, DEEP)[prompt, state].item() == pytest.approx(want, rel=1e-13)


def test_optimal_values_are_the_best_that_each_prefix_can_reach() -> None:
    found = exact.optimal_values(DEEP)
    prefixes = itertools.chain.from_iterable(itertools.product(range(3), repeat=t) for t in range(3))
    sequences = list(itertools.product(range(3), repeat=3))
    for state, prefix in enumerate(prefixes):
        inside = [i for i, y in enumerate(sequences) if y[: len(prefix)] == prefix]
        for prompt in range(2):
            assert found[prompt, state].item() == max(DEEP.success[prompt, i].item() for i in inside)
    assert found[:, 0].mean().item() == pytest.approx(DEEP.optimal_value)


def test_divergences_have_the_direction_of_their_names() -> None:
    new, old = random_logits(DEEP, 3), random_logits(DEEP, 4)
    for prompt in range(2):
        p, q = (sequence_probs(z[prompt], DEEP) for z in (new, old))
        pairs = list(zip(p, q, strict=True))
        want = {
            divergences.kl_new_to_old: sum(a * math.log(a / b) for a, b in pairs),
            divergences.kl_old_to_new: sum(b * math.log(b / a) for a, b in pairs),
            divergences.total_variation: sum(abs(a - b) for a, b in pairs) / 2,
        }
        for function, value in want.items():
            assert function(new, old, DEEP)[prompt].item() == pytest.approx(value, rel=1e-12), function.__name__


def test_fisher_matrix_is_the_hessian_of_the_kl_and_the_mean_outer_product() -> None:
    logits = random_logits(TREE, 6)
    blocks = fisher.fisher_matrix(logits, TREE)[0]
    dense = torch.block_diag(*blocks)
    hessian = torch.autograd.functional.hessian(
        lambda z: divergences.kl_old_to_new(z.reshape(logits.shape), logits, TREE).sum(), logits.flatten()
    )
    torch.testing.assert_close(dense, hessian, rtol=0.0, atol=1e-12)
    outer = torch.zeros_like(dense)
    for sequence, chance in enumerate(sequence_probs(logits[0], TREE)):
        leaf = logits.clone().requires_grad_()
        (score,) = torch.autograd.grad(exact.sequence_log_probs(leaf, TREE)[0, sequence], leaf)
        outer += chance * torch.outer(score.flatten(), score.flatten())
    torch.testing.assert_close(dense, outer, rtol=0.0, atol=1e-12)


def test_fisher_product_and_natural_gradient() -> None:
    logits, vector = random_logits(DEEP, 7, 3), random_logits(DEEP, 8, 3)
    blocks = fisher.fisher_matrix(logits, DEEP)
    want = (blocks @ vector.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(fisher.fisher_product(logits, vector, DEEP), want, rtol=0.0, atol=1e-14)
    gradient = exact.policy_gradient(logits, DEEP) * DEEP.prompts  # each prompt's own J
    want = (torch.linalg.pinv(blocks, hermitian=True) @ gradient.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(fisher.natural_gradient(logits, DEEP), want, rtol=0.0, atol=1e-9)


# Entropy dynamics -----------------------------------------------------------------------------------------------------


def row_entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def test_entropy_change_is_the_slope_of_the_entropy() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, step = torch.randn(2, 100, 6, generator=rng, dtype=torch.float64)
    h = 1e-5
    slope = (row_entropy(logits + h * step) - row_entropy(logits - h * step)) / (2 * h)
    torch.testing.assert_close(entropy.entropy_change(logits, step), slope, rtol=0.0, atol=1e-8)
    for k, unit in enumerate(torch.eye(6, dtype=torch.float64)):
        slope = (row_entropy(logits + h * unit) - row_entropy(logits - h * unit)) / (2 * h)
        torch.testing.assert_close(-entropy.entropy_discriminator(logits)[:, k], slope, rtol=0.0, atol=1e-8)
        away = unit - logits.softmax(-1)
        slope = (row_entropy(logits + h * away) - row_entropy(logits - h * away)) / (2 * h)
        torch.testing.assert_close(entropy.sampled_token_push(logits)[:, k], slope, rtol=0.0, atol=1e-8)


# Groups and gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [BANDIT, TREE, DEEP])
def test_sequence_places_agree_with_the_environment(model: ExactModel) -> None:
    sequences = torch.tensor(list(itertools.product(range(model.vocab_size), repeat=model.horizon)))
    want = model.prefix_states(sequences) * model.vocab_size + sequences
    assert torch.equal(sequence_places(model), want)


def ordered_groups(logits: Tensor, model: ExactModel, size: int) -> list[tuple[float, list[tuple[int, int]]]]:
    """Every ordered group of (answer, reward), with its probability, by loops."""
    probs, success = sequence_probs(logits[0], model), model.success[0].tolist()
    singles = [(y, r) for y in range(len(probs)) for r in (0, 1)]
    groups = []
    for group in itertools.product(singles, repeat=size):
        chance = math.prod(probs[y] * (success[y] if r else 1 - success[y]) for y, r in group)
        groups.append((chance, list(group)))
    return groups


@pytest.mark.parametrize(("model", "size"), [(BANDIT, 3), (CERTAIN, 3), (TREE, 2)])
def test_multisets_add_up_to_all_ordered_groups(model: ExactModel, size: int) -> None:
    logits = random_logits(model, 9)
    law = enumerate_groups(logits, model, size)
    want: dict[tuple[tuple[tuple[int, ...], int], ...], float] = {}
    places = sequence_places(model).tolist()
    for chance, group in ordered_groups(logits, model, size):
        key = tuple(sorted((tuple(places[y]), r) for y, r in group))
        want[key] = want.get(key, 0.0) + chance
    rows = zip(law.index.tolist(), law.rewards.tolist(), strict=True)
    found = [tuple(sorted((tuple(y), int(r)) for y, r in zip(*row, strict=True))) for row in rows]
    assert len(set(found)) == len(found) == sum(chance > 0 for chance in want.values())
    for key, chance in zip(found, law.probability.tolist(), strict=True):
        assert chance == pytest.approx(want[key], rel=1e-12)


def brute_moments(name: str, model: ExactModel, logits: Tensor, old: Tensor, size: int) -> tuple[Tensor, float]:
    """E g and tr Cov g, one ordered group after the other."""
    objective, ids = etr.get(name), torch.zeros(size, dtype=torch.long)
    mean, second = torch.zeros_like(logits[0]), 0.0
    old_rows = old[0].log_softmax(-1).flatten()
    for chance, group in ordered_groups(old, model, size):
        leaf = logits.clone().requires_grad_()
        index = sequence_places(model)[[y for y, _ in group]]
        rewards = torch.tensor([float(r) for _, r in group], dtype=torch.float64)
        taken, before = leaf[0].log_softmax(-1).flatten()[index], old_rows[index]
        batch = etr.Batch(
            log_probs=taken,
            old_log_probs=before,
            response_mask=torch.ones_like(index, dtype=torch.bool),
            advantages=objective.advantage(rewards, ids),
            group=etr.group_stats(rewards, ids),
        )
        (gradient,) = torch.autograd.grad(-etr.policy_loss(objective, batch).loss, leaf)
        mean += chance * gradient[0]
        second += chance * gradient.square().sum().item()
    return mean, second - mean.square().sum().item()


@pytest.mark.parametrize("name", ["reinforce", "grpo", "dr_grpo", "gspo", "cispo", "etr"])
@pytest.mark.parametrize(("model", "size"), [(BANDIT, 2), (TREE, 2), (CERTAIN, 3)])
def test_moments_off_policy_equal_brute_force(name: str, model: ExactModel, size: int) -> None:
    logits = random_logits(model, 10)
    old = logits + 0.3 * random_logits(model, 11)
    found = gradient_moments(etr.get(name), model, logits, size, old_logits=old)
    mean, trace = brute_moments(name, model, logits, old, size)
    torch.testing.assert_close(found.mean, mean, rtol=0.0, atol=1e-13)
    assert found.covariance_trace.item() == pytest.approx(trace, rel=1e-9)
    assert found.signal_to_noise.item() == pytest.approx(mean.square().sum().item() / trace, rel=1e-9)
    torch.testing.assert_close(found.target, exact.policy_gradient(logits, model)[0])
    torch.testing.assert_close(found.bias, mean - exact.policy_gradient(logits, model)[0])


def test_a_prompt_of_several_and_a_reference_policy() -> None:
    """Prompt 1 of two equals the same prompt alone; the KL penalty pulls towards the reference that was given."""
    model = ExactModel(3, 1, torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.5, 0.9]], dtype=torch.float64))
    logits, ref = random_logits(model, 12), random_logits(model, 13)
    objective = etr.get("grpo", beta=0.7)
    found = gradient_moments(objective, model, logits, 3, ref_logits=ref, prompt=1)
    alone = gradient_moments(objective, BANDIT, logits[1:], 3, ref_logits=ref[1:])
    torch.testing.assert_close(found.mean, alone.mean, rtol=0.0, atol=0.0)
    torch.testing.assert_close(found.target, alone.target, rtol=0.0, atol=1e-15)
    plain = gradient_moments(etr.get("grpo"), BANDIT, logits[1:], 3)
    leaf = logits[1:].clone().requires_grad_()
    # On-policy the gradient of k3 is that of KL(π_ref ‖ π), not of the KL it estimates.
    (want,) = torch.autograd.grad(divergences.kl_old_to_new(leaf, ref[1:], BANDIT).sum(), leaf)
    torch.testing.assert_close(alone.mean - plain.mean, -0.7 * want[0], rtol=0.0, atol=1e-12)


def test_moments_agree_with_sampling() -> None:
    """40 000 sampled groups of five: each entry of the mean within 4.5 standard errors, the trace within 3 %."""
    logits, runs, size = random_logits(BANDIT, 14), 40_000, 5
    old = logits + 0.4 * random_logits(BANDIT, 15)
    found = gradient_moments(etr.get("grpo"), BANDIT, logits, size, old_logits=old)
    rng = torch.Generator().manual_seed(1)
    draws = torch.rand(runs, 1, size, 1, generator=rng, dtype=torch.float64)
    tokens = BANDIT.sample(old.expand(runs, -1, -1, -1), draws)
    noise = torch.rand(runs, 1, size, 1, generator=rng, dtype=torch.float64)
    answers = tokens[:, 0]
    rewards = (noise[:, 0, :, 0] < BANDIT.success[0][answers[..., 0]]).double()
    leaf = logits.expand(runs, 1, 1, 3)[:, 0].clone().requires_grad_()
    taken = leaf.log_softmax(-1).flatten(-2).gather(-1, answers[..., 0]).unsqueeze(-1)
    ids, grpo = torch.zeros(size, dtype=torch.long), etr.get("grpo")
    batch = etr.Batch(
        log_probs=taken,
        old_log_probs=old[0, 0].log_softmax(-1)[answers],
        response_mask=torch.ones_like(answers, dtype=torch.bool),
        advantages=grpo.advantage(rewards, ids),
    )
    (gradients,) = torch.autograd.grad(-etr.policy_loss(grpo, batch).loss.sum(), leaf)
    error = gradients.std(0) / math.sqrt(runs)
    assert ((gradients.mean(0) - found.mean).abs() / error).max() < 4.5
    assert gradients.var(0).sum().item() == pytest.approx(found.covariance_trace.item(), rel=0.03)


def test_passes_of_any_size_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradient_moments(etr.get("etr"), BANDIT, random_logits(BANDIT, 16), 4)
    monkeypatch.setattr(estimator, "CHUNK", 100)
    parts = gradient_moments(etr.get("etr"), BANDIT, random_logits(BANDIT, 16), 4)
    torch.testing.assert_close(whole.mean, parts.mean, rtol=0.0, atol=1e-15)
    torch.testing.assert_close(whole.covariance_trace, parts.covariance_trace, rtol=1e-13, atol=0.0)


def test_a_verdict_trains_what_the_truth_does_not_reward() -> None:
    """A verifier that says the opposite turns the expected gradient round; ∇J stays that of the truth."""
    logits = random_logits(BANDIT, 17)
    model = ExactModel(3, 1, BANDIT.success, verdict=1 - BANDIT.success)
    own = gradient_moments(etr.get("reinforce"), model, logits, 3)
    found = gradient_moments(etr.get("reinforce"), BANDIT, logits, 3, verdict=1 - BANDIT.success)
    torch.testing.assert_close(found.mean, -found.target, rtol=0.0, atol=1e-14)
    torch.testing.assert_close(own.mean, found.mean, rtol=0.0, atol=0.0)
    assert found.cosine.item() == pytest.approx(-1.0, abs=1e-12)


def test_an_objective_that_needs_the_whole_distribution_gets_it() -> None:
    class Bonus(etr.Objective):
        """The policy gradient with an entropy bonus."""

        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"entropy", "full_log_probs"})

        def regularizer(self, batch: etr.Batch) -> Tensor:
            assert batch.entropy is not None and batch.full_log_probs is not None
            assert batch.full_log_probs.exp().sum(-1).allclose(torch.ones_like(batch.entropy))
            return -0.5 * batch.entropy

    logits = random_logits(BANDIT, 18)
    found = (
        gradient_moments(Bonus(), BANDIT, logits, 2).mean - gradient_moments(etr.Objective(), BANDIT, logits, 2).mean
    )
    leaf = logits.clone().requires_grad_()
    (want,) = torch.autograd.grad(0.5 * exact.entropy(leaf, BANDIT).sum(), leaf)
    torch.testing.assert_close(found, want[0], rtol=0.0, atol=1e-13)


def test_refusals() -> None:
    logits = random_logits(DEEP, 19)
    with pytest.raises(InputError, match=re.escape("54 answers with rewards make 4,582,116 groups of 5")):
        enumerate_groups(logits, DEEP, 5)
    with pytest.raises(InputError, match="group_size is 1; give at least 2"):
        enumerate_groups(logits, DEEP, 1)
