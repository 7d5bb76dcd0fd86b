"""TRPO: the natural-gradient step for tabular policies, and the objective that is the same aim as a penalty."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from batches import tokens
from torch import Tensor

import etr
from etr import exact
from etr.batch import Batch
from etr.errors import InputError
from etr.oracles import fisher, trpo
from toy_envs import ExactModel, make_model

BANDIT = ExactModel(3, 1, torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64))
CERTAIN = ExactModel(3, 1, torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64))
DEEP = ExactModel(3, 3, torch.rand(2, 27, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


def random_logits(model: ExactModel, seed: int, *lead: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((*lead, model.prompts, model.states, model.vocab_size), generator=rng, dtype=torch.float64)


def dense_fisher(logits: Tensor, model: ExactModel) -> Tensor:
    """The whole matrix of the mean KL, `[P·S·V, P·S·V]`, put together from its blocks."""
    blocks = fisher.fisher_matrix(logits, model).flatten(0, 1) / model.prompts
    whole: Tensor = torch.block_diag(*blocks)
    return whole


# The step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.1, 1e-3])
@pytest.mark.parametrize("model", [BANDIT, DEEP])
def test_conjugate_gradient_solves_as_a_dense_solver_does(model: ExactModel, damping: float) -> None:
    logits = random_logits(model, 1, 2)
    gradient = exact.policy_gradient(logits, model)

    def product(vector: Tensor) -> Tensor:
        return fisher.fisher_product(logits, vector, model) / model.prompts + damping * vector

    found = trpo.conjugate_gradient(product, gradient, iterations=100)
    for run in range(2):
        matrix = dense_fisher(logits[run], model)
        want = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), gradient[run].ravel())
        torch.testing.assert_close(found[run].ravel(), want, rtol=1e-9, atol=1e-11)


def test_conjugate_gradient_needs_as_many_iterations_as_there_are_eigenvalues() -> None:
    """diag(1, 1, 3)·x = (1, 2, 6): two eigenvalues, so two iterations: x = (1, 2, 2). One is not enough."""
    scale = torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64).reshape(1, 1, 3)
    target = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64).reshape(1, 1, 3)
    two = trpo.conjugate_gradient(lambda v: scale * v, target, iterations=2)
    torch.testing.assert_close(two.ravel(), torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))
    one = trpo.conjugate_gradient(lambda v: scale * v, target, iterations=1).ravel()
    # rate = g·g / g·Fg = 41 / (1 + 4 + 108) = 41/113
    torch.testing.assert_close(one, 41 / 113 * target.ravel())


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    zero = torch.zeros(1, 1, 3, dtype=torch.float64)
    assert torch.equal(trpo.conjugate_gradient(lambda v: v, zero), zero)


@pytest.mark.parametrize("model", [BANDIT, DEEP])
def test_full_step_has_the_length_of_the_closed_form(model: ExactModel) -> None:
    """½ sᵀ(F + α)s = δ, and s is parallel to (F + α)⁻¹g, both by dense linear algebra."""
    logits, delta, damping = random_logits(model, 2), 0.02, 0.05
    found = trpo.full_step(logits, model, delta, damping, iterations=100).ravel()
    matrix = dense_fisher(logits, model) + damping * torch.eye(found.numel(), dtype=torch.float64)
    assert (found @ matrix @ found).item() / 2 == pytest.approx(delta, rel=1e-9)
    gradient = exact.policy_gradient(logits, model).ravel()
    want = math.sqrt(2 * delta / (gradient @ torch.linalg.solve(matrix, gradient)).item()) * torch.linalg.solve(
        matrix, gradient
    )
    torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-13)


def test_full_step_of_a_bandit_by_hand() -> None:
    """Uniform over 3 arms, success 0, 1, 1: A = (−2/3, 1/3, 1/3), g = π·A = (−2/9, 1/9, 1/9), and F·A = g.

    Without damping x = A (the natural gradient), xᵀFx = Σ π A² = (4/9 + 1/9 + 1/9)/3 = 2/9, so that
    s = √(2·0.01·9/2)·A = 0.3·A.
    """
    found = trpo.full_step(torch.zeros(1, 1, 3, dtype=torch.float64), CERTAIN, delta=0.01, damping=0.0).ravel()
    want = 0.3 * torch.tensor([-2 / 3, 1 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("delta", [1e-4, 0.01, 0.3])
@pytest.mark.parametrize("model", [BANDIT, DEEP])
def test_a_step_keeps_its_promise(model: ExactModel, delta: float) -> None:
    """Exact KL ≤ δ and the surrogate improves; both measured here anew, run by run."""
    old = random_logits(model, 3, 5)
    done = trpo.step(old, model, delta=delta, damping=1e-4)
    assert done.taken.all() and (done.length > 0).all() and (done.length <= 1).all()
    divergence = exact.kl(old, done.logits, model).mean(-1) * model.horizon
    assert (divergence <= delta).all() and (divergence > delta / 10).all()  # nearly used up: damping is small
    torch.testing.assert_close(done.kl, divergence)
    ratio = done.logits.log_softmax(-1).exp() / old.softmax(-1)
    visits = exact.state_visits(old, model).unsqueeze(-1) * old.softmax(-1)
    gain = (visits * ratio * exact.advantages(old, model)).sum((-2, -1)).mean(-1)
    assert (gain > 0).all()
    torch.testing.assert_close(done.gain, gain)


def test_the_line_search_takes_the_first_length_that_fits() -> None:
    """At δ = 0.3 the quadratic model is too bold for some runs: their length is the largest 0.8^k that fits."""
    old = 2 * random_logits(BANDIT, 4, 40)
    done = trpo.step(old, BANDIT, delta=0.3, damping=1e-6)
    whole = trpo.full_step(old, BANDIT, 0.3, 1e-6)
    assert (done.length == 1).any() and (done.length < 1).any() and done.taken.all()
    for run, length in enumerate(done.length.tolist()):
        for share in (0.8**k for k in range(10)):
            trial = old[run] + share * whole[run]
            fits = trpo.mean_kl(trial, old[run], BANDIT) <= 0.3 and trpo.surrogate(trial, old[run], BANDIT) > 0
            if fits:
                assert length == share
                break


def test_no_step_where_none_is_allowed() -> None:
    """Too few tries, or no gradient: the policy stays, bit for bit, and says so."""
    old = 3 * random_logits(BANDIT, 0, 30)
    done = trpo.step(old, BANDIT, delta=2.0, damping=1e-8, tries=1)
    assert (~done.taken).any()
    assert torch.equal(done.logits[~done.taken], old[~done.taken]) and (done.kl[~done.taken] == 0).all()
    same = ExactModel(3, 1, torch.full((1, 3), 0.5, dtype=torch.float64))
    still = trpo.step(torch.zeros(1, 1, 3), same)
    assert not still.taken and torch.equal(still.logits, torch.zeros(1, 1, 3).double())


def test_runs_do_not_mix() -> None:
    old = random_logits(DEEP, 6, 3)
    together = trpo.step(old, DEEP)
    for run in range(3):
        alone = trpo.step(old[run], DEEP)
        torch.testing.assert_close(alone.logits, together.logits[run], rtol=1e-12, atol=1e-12)
        assert alone.length == together.length[run]


@pytest.mark.parametrize("name", ["bandit-spread", "tree-easy"])
def test_steps_climb_without_a_fall_and_arrive(name: str) -> None:
    """TRPO's promise: J rises at every step here (δ is small), and on a bandit the best arm is found."""
    model = make_model(name)
    logits = torch.zeros(model.prompts, model.states, model.vocab_size, dtype=torch.float64)
    values = [exact.expected_reward(logits, model).mean().item()]
    for _ in range(150):
        logits = trpo.step(logits, model, delta=0.05, damping=1e-3).logits
        values.append(exact.expected_reward(logits, model).mean().item())
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    best = exact.optimal_values(model)[:, 0].mean().item()
    start = values[0]
    assert values[-1] - start > 0.95 * (best - start)


def test_the_surrogate_is_the_gain_to_first_order() -> None:
    """Its gradient at the old policy is ∇J (Kakade & Langford 2002), and its value there is 0."""
    old = random_logits(DEEP, 7)
    leaf = old.clone().requires_grad_()
    value = trpo.surrogate(leaf, old, DEEP)
    assert value.item() == pytest.approx(0.0, abs=1e-15)
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], exact.policy_gradient(old, DEEP))


@pytest.mark.parametrize(
    ("name", "value"), [("delta", 0.0), ("damping", -1.0), ("backtrack", 1.0), ("iterations", 0), ("tries", 0)]
)
def test_bad_settings_are_refused(name: str, value: float) -> None:
    settings: dict[str, float] = {name: value}
    with pytest.raises(InputError, match=name):
        trpo.step(torch.zeros(1, 1, 3), BANDIT, **settings)  # type: ignore[arg-type]


# The objective ----------------------------------------------------------------------------------------------------


def test_one_token_by_hand() -> None:
    """r = 1.5, A = 2: r·A = 3; the penalty is β(r − 1 − log r) = 7.07·(0.5 − 0.405465) = 0.668362."""
    batch, objective = tokens([[math.log(1.5)]], [2.0]), etr.get("trpo")
    out = etr.policy_loss(objective, batch)
    assert out.per_token.item() == pytest.approx(3.0)
    assert out.loss.item() == pytest.approx(-3.0 + 7.07 * (0.5 - 0.4054651081081644))


def test_gradient_of_the_penalised_objective() -> None:
    """∂loss/∂log π = −(r·A − β(r − 1))/N, no bound anywhere."""
    shifts, advantages = [[0.05, -0.3, 1.5], [0.4], [-2.0, -0.6]], [1.0, -2.0, 0.5]
    batch = tokens(shifts, advantages)
    leaf = batch.log_probs.clone().requires_grad_()
    loss = etr.policy_loss(
        etr.get("trpo", beta=3.0), Batch(leaf, batch.old_log_probs, batch.response_mask, batch.advantages)
    ).loss
    (found,) = torch.autograd.grad(loss, leaf)
    for row, (values, a) in enumerate(zip(shifts, advantages, strict=True)):
        for t, x in enumerate(values):
            want = -(math.exp(x) * a - 3.0 * (math.exp(x) - 1)) / 6
            assert found[row, t].item() == pytest.approx(want, rel=1e-12)


def enumerated(logits: Tensor, old: Tensor, objective: etr.Objective, advantages: Tensor) -> Tensor:
    """The loss with every arm once, weighted by π_old: an exact expectation over samples of the old policy."""
    table = logits.log_softmax(-1)
    arms = torch.arange(len(old))
    before = Batch(
        log_probs=old[:, None],
        old_log_probs=old[:, None],
        response_mask=torch.ones(len(old), 1, dtype=torch.bool),
        advantages=advantages,
        full_log_probs=old.expand(len(old), 1, len(old)),
    )
    batch, _ = objective.prepare(before, {})
    total = logits.new_zeros(())
    for arm in arms:
        one = batch.rows(arm[None])
        fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
        part = Batch(**{**fields, "log_probs": table[arm][None, None], "full_log_probs": table[None, None]})
        total = total + old[arm].exp() * etr.policy_loss(objective, part, denominator=1.0).loss
    return total


@pytest.mark.parametrize("kind", ["sampled", "full"])
def test_both_measures_are_the_kl_in_expectation_and_in_gradient(kind: str) -> None:
    old = torch.tensor([0.3, -0.5, 1.0, 0.1], dtype=torch.float64).log_softmax(-1)
    logits = torch.tensor([0.9, -0.2, 0.4, -0.6], dtype=torch.float64, requires_grad=True)
    loss = enumerated(logits, old, etr.get("trpo", kl=kind, beta=1.0), torch.zeros(4, dtype=torch.float64))
    divergence = (old.exp() * (old - logits.log_softmax(-1))).sum()
    torch.testing.assert_close(loss, divergence)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(divergence, logits)[0])


def test_penalty_and_constraint_meet_in_one_step() -> None:
    """A Newton step of J at the old policy with β = √(gᵀF⁻¹g/(2δ)) is TRPO's full step of size δ.

    A bandit with advantages z-scored under π_old: gᵀF⁻¹g = Σ π A² = 1, and β = 7.07 for δ = 0.01.
    """
    model, delta = CERTAIN, 0.01
    logits = torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)
    old = logits.log_softmax(-1)
    raw = exact.advantages(logits.reshape(1, 1, 3), model).ravel()
    scores = raw / (old.exp() * raw.square()).sum().sqrt()
    beta = math.sqrt(1 / (2 * delta))
    assert beta == pytest.approx(etr.get("trpo").beta, abs=2e-3)  # type: ignore[attr-defined]
    leaf = logits.clone().requires_grad_()

    def loss(at: Tensor) -> Tensor:
        return enumerated(at, old, etr.get("trpo", beta=beta), scores)

    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    hessian = torch.autograd.functional.hessian(
        lambda at: enumerated(at, old, etr.get("trpo", beta=beta), scores * 0), logits
    )
    assert isinstance(hessian, Tensor)
    newton = -torch.linalg.pinv(hessian) @ gradient  # of linear surrogate and quadratic penalty
    want = trpo.full_step(logits.reshape(1, 1, 3), model, delta, damping=0.0).ravel()
    torch.testing.assert_close(newton, want - want.mean(), rtol=1e-6, atol=1e-9)


def test_without_penalty_it_is_the_plain_importance_weighted_gradient() -> None:
    batch = tokens([[2.0, -3.0], [0.5]], [1.0, -1.0])
    c = etr.gradient_coefficient(etr.get("trpo"), batch)  # c leaves the penalty out
    want = [[math.exp(2.0), math.exp(-3.0)], [-math.exp(0.5), 0.0]]
    torch.testing.assert_close(c, torch.tensor(want, dtype=torch.float64))
    assert etr.policy_loss(etr.get("trpo", beta=0.0), batch).loss.item() == pytest.approx(
        -(math.exp(2.0) + math.exp(-3.0) - math.exp(0.5)) / 3
    )
