"""Exact quantities against enumeration, finite differences, closed forms and published numbers."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from etr import exact
from etr.errors import InputError
from toy_envs import Bandit, ExactModel

SIZES = [(2, 1), (5, 1), (2, 3), (3, 2), (4, 3)]  # (V, T)
RUNS, PROMPTS = 2, 3


def random_case(vocab: int, horizon: int, seed: int = 0) -> tuple[ExactModel, Tensor, Tensor]:
    """A model with random success probabilities and two random policies `[RUNS, PROMPTS, S, V]`."""
    rng = torch.Generator().manual_seed(seed)
    success = torch.rand(PROMPTS, vocab**horizon, generator=rng, dtype=torch.float64)
    model = ExactModel(vocab, horizon, success)
    shape = (2, RUNS, PROMPTS, model.states, vocab)
    logits_p, logits_q = 1.5 * torch.randn(shape, generator=rng, dtype=torch.float64)
    return model, logits_p, logits_q


def tables(logits: Tensor, vocab: int, horizon: int) -> dict[tuple[int, ...], list[float]]:
    """Next-token distribution after each prefix, logits `[S, V]`; product() gives the state order."""
    prefixes = itertools.chain.from_iterable(itertools.product(range(vocab), repeat=t) for t in range(horizon))
    result = {}
    for prefix, row in zip(prefixes, logits.tolist(), strict=True):
        weights = [math.exp(z) for z in row]
        result[prefix] = [w / sum(weights) for w in weights]
    return result


def brute_force_probs(logits: Tensor, vocab: int, horizon: int) -> list[float]:
    policy = tables(logits, vocab, horizon)
    sequences = itertools.product(range(vocab), repeat=horizon)
    return [math.prod(policy[seq[:t]][seq[t]] for t in range(horizon)) for seq in sequences]


@pytest.mark.parametrize(("vocab", "horizon"), SIZES)
def test_reward_entropy_and_kl_equal_enumeration(vocab: int, horizon: int) -> None:
    model, logits_p, logits_q = random_case(vocab, horizon)
    found = {
        "J": exact.expected_reward(logits_p, model),
        "H": exact.entropy(logits_p, model),
        "H_sequence": exact.sequence_entropy(logits_p, model),
        "KL": exact.kl(logits_p, logits_q, model),
    }
    log_probs = exact.sequence_log_probs(logits_p, model)
    for run, prompt in itertools.product(range(RUNS), range(PROMPTS)):
        p = brute_force_probs(logits_p[run, prompt], vocab, horizon)
        q = brute_force_probs(logits_q[run, prompt], vocab, horizon)
        assert log_probs[run, prompt].exp().tolist() == pytest.approx(p, rel=1e-12)
        entropy = -sum(a * math.log(a) for a in p)
        wanted = {
            "J": sum(a * r for a, r in zip(p, model.success[prompt].tolist(), strict=True)),
            "H": entropy / horizon,
            "H_sequence": entropy,
            "KL": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / horizon,
        }
        for name, value in wanted.items():
            assert found[name][run, prompt].item() == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize(("vocab", "horizon"), SIZES)
def test_visits_and_action_values_equal_enumeration(vocab: int, horizon: int) -> None:
    model, logits, _ = random_case(vocab, horizon)
    visits, values = exact.state_visits(logits, model), exact.action_values(logits, model)
    sequences = list(itertools.product(range(vocab), repeat=horizon))
    for run, prompt in itertools.product(range(RUNS), range(PROMPTS)):
        probs = brute_force_probs(logits[run, prompt], vocab, horizon)
        reward = model.success[prompt].tolist()
        for state, prefix in enumerate(tables(logits[run, prompt], vocab, horizon)):
            t = len(prefix)
            reach = sum(p for p, seq in zip(probs, sequences, strict=True) if seq[:t] == prefix)
            assert visits[run, prompt, state].item() == pytest.approx(reach, rel=1e-12)
            for token in range(vocab):
                through = [i for i, seq in enumerate(sequences) if seq[: t + 1] == (*prefix, token)]
                mean = sum(probs[i] * reward[i] for i in through) / sum(probs[i] for i in through)
                assert values[run, prompt, state, token].item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(("vocab", "horizon"), SIZES)
def test_gradient_equals_central_differences(vocab: int, horizon: int) -> None:
    model, logits, _ = random_case(vocab, horizon)
    found = exact.policy_gradient(logits, model)
    h = 1e-5
    for run in range(RUNS):
        base = logits[run]
        steps = h * torch.eye(base.numel(), dtype=torch.float64).reshape(-1, *base.shape)
        up = exact.expected_reward(base + steps, model).mean(-1)
        down = exact.expected_reward(base - steps, model).mean(-1)
        numeric = ((up - down) / (2 * h)).reshape(base.shape)
        torch.testing.assert_close(found[run], numeric, rtol=1e-6, atol=1e-10)


def test_gradient_equals_autograd_in_single_precision_logits() -> None:
    model, logits, _ = random_case(3, 2)
    leaf = logits.float().requires_grad_()
    exact.expected_reward(leaf, model).mean(-1).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, exact.policy_gradient(leaf, model).float(), rtol=1e-6, atol=1e-9)


def test_bandit_gradient_closed_form() -> None:
    """pi_a (r_a - pi.r) / P with one state per prompt."""
    model, logits, _ = random_case(5, 1)
    pi = logits[..., 0, :].softmax(-1)
    wanted = pi * (model.success - (pi * model.success).sum(-1, keepdim=True)) / PROMPTS
    torch.testing.assert_close(exact.policy_gradient(logits, model)[..., 0, :], wanted, rtol=1e-12, atol=0.0)


def test_extremes_uniform_peaked_and_equal_policies() -> None:
    model, logits, _ = random_case(4, 3)
    uniform = torch.zeros_like(logits)
    torch.testing.assert_close(exact.entropy(uniform, model), torch.full((2, 3), math.log(4)).double())
    assert exact.expected_reward(uniform, model).mean(-1)[0].item() == pytest.approx(model.uniform_value)
    assert exact.kl(logits, logits, model).abs().max().item() == 0.0
    best = torch.zeros_like(logits)
    for prompt, index in enumerate(model.success.argmax(-1).tolist()):
        tokens = torch.tensor([index // 16, index // 4 % 4, index % 4])
        best[:, prompt, model.prefix_states(tokens), tokens] = 60.0
    assert exact.expected_reward(best, model).mean(-1)[0].item() == pytest.approx(model.optimal_value)
    assert exact.entropy(best, model).max().item() < 1e-20


def ascend(success: list[float], logits: Tensor, marks: list[int], eta: float = 0.4) -> list[float]:
    """Gaps r* - pi.r at the marked steps of gradient ascent on J with exact gradients."""
    model, gaps = Bandit([success]).model, []
    for step in range(marks[-1] + 1):
        if step in marks:
            gaps.append(model.optimal_value - exact.expected_reward(logits, model).item())
        logits = logits + eta * exact.policy_gradient(logits, model)
    return gaps


def test_published_rate_from_a_uniform_start() -> None:
    """K = 3, r = (1, .9, .1), eta 2/5 (Mei et al. 2005.06392): gap 1.83e-3 at 1e3 steps, below 5 K^2 / t."""
    (gap,) = ascend([1.0, 0.9, 0.1], torch.zeros(1, 1, 3), [1000])
    assert gap == pytest.approx(1.83e-3, abs=5e-6)
    assert gap <= 5 * 3**2 / 1000


def test_published_rate_is_one_over_t() -> None:
    (gap,) = ascend([1.0, 0.9, 0.1], torch.zeros(1, 1, 3), [10_000])
    assert gap == pytest.approx(1.69e-4, abs=5e-7)


def test_plateau_from_a_bad_start() -> None:
    """The same arms from pi = (.05, .01, .94): gaps at steps 1, 10, 100, 1000, the start being step 1."""
    start = torch.tensor([0.05, 0.01, 0.94], dtype=torch.float64).log().reshape(1, 1, 3)
    gaps = ascend([1.0, 0.9, 0.1], start, [0, 9, 99, 999])
    assert gaps == pytest.approx([0.847, 0.826, 0.0228, 1.44e-3], rel=2.5e-3)


def entropy_slope(logits: Tensor, step: Tensor, model: ExactModel, h: float = 1e-5) -> Tensor:
    return (exact.entropy(logits + h * step, model) - exact.entropy(logits - h * step, model)) / (2 * h)


def test_entropy_change_is_minus_the_covariance_with_log_probs() -> None:
    """dH = -Cov_pi(log pi, dz) to first order, for any logit step of a bandit (2505.22617)."""
    rng = torch.Generator().manual_seed(3)
    model = ExactModel(6, 1, torch.full((1, 6), 0.5, dtype=torch.float64))
    logits, step = 2 * torch.randn(2, 200, 1, 1, 6, generator=rng, dtype=torch.float64)
    pi, log_pi = logits.softmax(-1), logits.log_softmax(-1)
    covariance = (pi * log_pi * step).sum(-1) - (pi * log_pi).sum(-1) * (pi * step).sum(-1)
    torch.testing.assert_close(entropy_slope(logits, step, model), -covariance[..., 0], rtol=0.0, atol=1e-7)


def test_entropy_change_of_one_sampled_token() -> None:
    """dz = e_k - pi gives dH = -(S_k - E S), S_k = p_k (H + log p_k) (2602.03392): a worked number."""
    model = Bandit([[0.5] * 4]).model
    logits = torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=torch.float64).reshape(1, 1, 4)
    pi = logits.softmax(-1)
    assert exact.entropy(logits, model).item() == pytest.approx(0.801056, abs=5e-7)
    assert pi.flatten().tolist() == pytest.approx([0.757313, 0.102491, 0.102491, 0.037704], abs=5e-7)
    steps = (torch.eye(4, dtype=torch.float64) - pi[0]).reshape(4, 1, 1, 4)
    found = entropy_slope(logits, steps, model).flatten().tolist()
    assert found == pytest.approx([-0.130686, 0.416819, 0.416819, 0.358839], abs=1e-6)


def test_bad_logits() -> None:
    model = Bandit([[0.5, 0.2], [0.1, 0.3]]).model
    sentence = re.escape("logits have shape (2, 1, 3); give [..., 2, 1, 2] (prompts, states, tokens)")
    with pytest.raises(InputError, match=sentence):
        exact.expected_reward(torch.zeros(2, 1, 3), model)
    logits = torch.zeros(2, 1, 2)
    logits[1, 0, 1] = torch.inf
    with pytest.raises(InputError, match=re.escape("logit at index [1, 0, 1] is inf; lower the learning rate")):
        exact.entropy(logits, model)
