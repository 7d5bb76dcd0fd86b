"""The split of an entropy change against plain loops, enumeration and published numbers: every cell, and their sum."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import etr
from etr import exact
from etr.batch import Batch
from etr.errors import InputError
from etr.observatory import SIGNS, entropy_change, exact_entropy_change, token_changes, visit_change
from toy_envs import ExactModel


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy_of(probabilities: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def binned(p: float) -> int:
    return sum(p > edge for edge in (0.01, 0.1, 0.5, 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "name"), [(2, "p0.1-0.5"), (10, "p0.01-0.1"), (100, "p0-0.01")])
def test_a_boundary_belongs_to_the_bin_below(size: int, name: str, dtype: torch.dtype) -> None:
    """Of a uniform policy, however its log-probs were rounded."""
    shifts = torch.linspace(-3, 3, 50, dtype=dtype).unsqueeze(-1)
    logits = shifts.expand(50, size)
    old = logits - logits.logsumexp(-1, keepdim=True)  # −ln(size), rounded up or down
    batch = Batch(old - 1.0, old, torch.ones(50, size, dtype=torch.bool), torch.ones(50, dtype=dtype))
    found = entropy_change(batch, torch.full_like(old, math.log(size)), torch.ones_like(old)).metrics()
    bins = {key: mean.sum.item() for key, mean in found.items() if "change_p0" in key}
    assert [key for key, value in bins.items() if value != 0] == [f"entropy/change_{name}"]


# One state --------------------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.floats(0.0, 4.0), st.integers(0, 1000))
def test_changes_of_a_vocabulary_add_up_to_the_entropy_change(size: int, step: float, seed: int) -> None:
    z, dz = 2 * normal(size, seed=seed), step * normal(size, seed=seed + 1)
    old, new = z.softmax(-1).tolist(), (z + dz).softmax(-1).tolist()
    before = entropy_of(old)
    measured, predicted = token_changes(
        (z + dz).log_softmax(-1), z.log_softmax(-1), torch.full((size,), before, dtype=torch.float64)
    )
    weights = torch.tensor(old, dtype=torch.float64)
    assert float((weights * measured).sum()) == pytest.approx(entropy_of(new) - before, abs=1e-12)
    ratio = [q / p for p, q in zip(old, new, strict=True)]
    mean = math.fsum(p * math.log(p) for p in old)
    covariance = math.fsum(p * (math.log(p) - mean) * (r - 1) for p, r in zip(old, ratio, strict=True))
    assert float((weights * predicted).sum()) == pytest.approx(-covariance, abs=1e-12)
    kl = math.fsum(q * math.log(q / p) for p, q in zip(old, new, strict=True))
    assert float((weights * (predicted - measured)).sum()) == pytest.approx(kl, abs=1e-12)
    assert (predicted - measured >= 0).all()  # token by token


def test_small_steps_follow_the_published_numbers() -> None:
    """2602.03392, Theorem 3.3, for logits (2, 0, 0, −1): dH of a sampled token's policy gradient per unit weight."""
    z = torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    pi, alpha = z.softmax(-1), 1e-7
    entropy = -(pi * pi.log()).sum()
    assert float(entropy) == pytest.approx(0.801056, abs=1e-6)
    for token, want in enumerate((-0.130686, 0.416819, 0.416819, 0.358839)):
        push = alpha * (torch.eye(4, dtype=torch.float64)[token] - pi)
        for part in token_changes((z + push).log_softmax(-1), pi.log(), entropy.expand(4)):
            assert float((pi * part).sum()) / alpha == pytest.approx(want, abs=1e-5)


def test_a_token_whose_probability_stays_has_no_share() -> None:
    log_p = torch.tensor([0.2, 0.8]).log()
    for part in token_changes(log_p, log_p, torch.tensor([0.5, 0.5])):
        assert part.eq(0).all()


# Cells ------------------------------------------------------------------------------------------------------------


def random_batch(seed: int, runs: int = 2, responses: int = 12, width: int = 3) -> tuple[Batch, Tensor, Tensor]:
    """Ragged responses with NaN in the padding, advantages of all signs, entropies and weights."""
    mask = torch.arange(width) < torch.arange(responses).remainder(width).unsqueeze(-1) + 1
    mask = mask.expand(runs, -1, -1)
    old = (normal(runs, responses, width, seed=seed).abs() * -2.5).masked_fill(~mask, math.nan)
    new = old + 0.3 * normal(runs, responses, width, seed=seed + 1)
    advantages = torch.tensor([1.5, -0.5, 0.0]).double()[torch.arange(responses) % 3].expand(runs, -1)
    entropy, weights = (normal(*old.shape, seed=seed + i).abs().masked_fill(~mask, math.nan) for i in (2, 3))
    return Batch(new, old, mask, advantages), entropy, weights


def cells_by_loop(
    batch: Batch, entropy: Tensor, weights: Tensor | None
) -> tuple[list[dict[tuple[int, ...], float]], ...]:
    """Measured and predicted change by (sign, bin, clipped) of every run, and the number of tokens, under GRPO 0.2."""
    measured, predicted, tokens = [], [], []
    for r, part in enumerate(batch.response_mask):
        cells: tuple[dict[tuple[int, ...], float], ...] = (defaultdict(float), defaultdict(float), defaultdict(float))
        for b, t in part.nonzero().tolist():
            new, old = batch.log_probs[r, b, t].item(), batch.old_log_probs[r, b, t].item()
            h, a = entropy[r, b, t].item(), batch.advantages[r, b].item()
            w, ratio = 1.0 if weights is None else weights[r, b, t].item(), math.exp(new - old)
            clipped = (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
            cell = (0 if a > 0 else 1 if a < 0 else 2, binned(math.exp(old)), int(clipped))
            cells[0][cell] += w * (-ratio * new + old + (1 - h) * (ratio - 1))
            cells[1][cell] += w * -(old + h) * (ratio - 1)
            cells[2][()] += w
        measured.append(dict(cells[0]))
        predicted.append(dict(cells[1]))
        tokens.append(dict(cells[2]))
    return measured, predicted, tokens


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", [0, 10])
def test_cells_equal_a_loop_over_tokens(seed: int, weighted: bool) -> None:
    batch, entropy, weights = random_batch(seed)
    coefficient = etr.gradient_coefficient(etr.get("grpo"), batch)
    given = weights if weighted else None
    split = entropy_change(batch, entropy, coefficient, given)
    measured, predicted, tokens = cells_by_loop(batch, entropy, given)
    clipped = 0
    for part, want in ((split.measured, measured), (split.predicted, predicted)):
        assert part.sum.shape == (2, len(SIGNS), 5, 2)
        for r in range(2):
            for cell in itertools.product(range(4), range(5), range(2)):
                assert part.sum[r][cell].item() == pytest.approx(want[r].get(cell, 0.0), abs=1e-12)
                clipped += cell[2] and cell in want[r]
            assert part.count[r].item() == pytest.approx(tokens[r][()])
    assert clipped >= 4  # the batch has such tokens


def test_metrics_are_margins_that_add_up() -> None:
    batch, entropy, _ = random_batch(3)
    split = entropy_change(batch, entropy, etr.gradient_coefficient(etr.get("grpo"), batch))
    values = {name: mean.value for name, mean in split.metrics().items()}
    total = split.measured.value.sum((-3, -2, -1))
    torch.testing.assert_close(values["entropy/change"], total)
    torch.testing.assert_close(sum(values[f"entropy/change_{sign}"] for sign in SIGNS), total)
    bins = [value for name, value in values.items() if name.startswith("entropy/change_p") and "-" in name]
    assert len(bins) == 5
    torch.testing.assert_close(sum(bins), total)
    torch.testing.assert_close(values["entropy/predicted"], split.predicted.value.sum((-3, -2, -1)))
    torch.testing.assert_close(values["entropy/change_clipped"], split.measured.value[..., 1].sum((-2, -1)))


def test_splits_of_micro_batches_add_up() -> None:
    batch, entropy, _ = random_batch(5)
    coefficient = etr.gradient_coefficient(etr.get("grpo"), batch)
    whole = entropy_change(batch, entropy, coefficient)
    pieces = [slice(0, 5), slice(5, 12)]
    first, second = (entropy_change(batch.rows(p), entropy[:, p], coefficient[:, p]) for p in pieces)
    added = first + second
    torch.testing.assert_close(added.measured.value, whole.measured.value)
    torch.testing.assert_close(added.predicted.value, whole.predicted.value)


@pytest.mark.parametrize("weighted", [False, True])
def test_visits_equal_a_loop_over_tokens(weighted: bool) -> None:
    """A token counts by the ratio of the tokens before it, its own not included."""
    batch, entropy, weights = random_batch(8)
    found = visit_change(batch, entropy, weights if weighted else None)
    for r in range(2):
        total = count = 0.0
        for b in range(12):
            reach = 1.0
            for t in range(3):
                if batch.response_mask[r, b, t]:
                    w = weights[r, b, t].item() if weighted else 1.0
                    total += w * (reach - 1) * entropy[r, b, t].item()
                    count += w
                    reach *= math.exp(batch.log_probs[r, b, t].item() - batch.old_log_probs[r, b, t].item())
        assert (found.sum[r].item(), found.count[r].item()) == pytest.approx((total, count))


def test_values_of_another_shape_are_refused() -> None:
    batch, entropy, _ = random_batch(0)
    with pytest.raises(InputError, match=r"old_entropy has shape \(2, 12\)"):
        entropy_change(batch, entropy[..., 0], entropy)
    with pytest.raises(InputError, match="entropy has shape"):
        visit_change(batch, entropy[0])


# Token trees ------------------------------------------------------------------------------------------------------


def tree(vocab: int, horizon: int, prompts: int = 2) -> ExactModel:
    chance = torch.rand(prompts, vocab**horizon, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return ExactModel(vocab, horizon, chance)


def sequence_entropy(table: list[list[float]], vocab: int, horizon: int) -> float:
    """H over complete sequences from the probabilities of the sequences themselves; table: state -> π(token)."""
    return entropy_of([p for _, p in sequences(table, vocab, horizon)])


def sequences(table: list[list[float]], vocab: int, horizon: int) -> list[tuple[list[tuple[int, int]], float]]:
    """Every complete sequence as (state, token) pairs, with its probability."""
    found = []
    for tokens in itertools.product(range(vocab), repeat=horizon):
        chance, number, path = 1.0, 0, []
        for t, token in enumerate(tokens):
            state = sum(vocab**k for k in range(t)) + number
            path.append((state, token))
            chance *= table[state][token]
            number = number * vocab + token
        found.append((path, chance))
    return found


@pytest.mark.parametrize(("vocab", "horizon"), [(4, 1), (3, 3), (2, 4)])
def test_an_enumerated_tree_adds_up_to_the_sequence_entropy(vocab: int, horizon: int) -> None:
    """Every sequence once, weighted by the old policy's probability: change + visits = ΔH of sequences, per token."""
    states = sum(vocab**t for t in range(horizon))
    z = normal(states, vocab, seed=7)
    old, new = (logits.softmax(-1).tolist() for logits in (z, z + 0.8 * normal(states, vocab, seed=8)))
    rows = sequences(old, vocab, horizon)

    def column(table: list[list[float]]) -> Tensor:
        return torch.tensor([[table[s][a] for s, a in path] for path, _ in rows], dtype=torch.float64)

    def entropies(table: list[list[float]]) -> Tensor:
        return torch.tensor([[entropy_of(table[s]) for s, _ in path] for path, _ in rows], dtype=torch.float64)

    weights = torch.tensor([[chance] * horizon for _, chance in rows], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0]).double()[torch.arange(len(rows)) % 2]
    mask = torch.ones_like(weights, dtype=torch.bool)
    batch = Batch(column(new).log(), column(old).log(), mask, advantages)
    split = entropy_change(batch, entropies(old), etr.gradient_coefficient(etr.get("grpo"), batch), weights)
    change, visits = split.metrics()["entropy/change"].value, visit_change(batch, entropies(new), weights).value
    before, after = (sequence_entropy(table, vocab, horizon) for table in (old, new))
    assert (change + visits).item() == pytest.approx((after - before) / horizon, abs=1e-13)
    assert (abs(visits.item()) > 1e-3) == (horizon > 1)


def test_samples_of_their_own_update_are_biased_and_fresh_ones_are_not() -> None:
    """One sample, one step towards it, over all samples there can be: the reason for the warning in the docstring."""
    z = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    pi = z.softmax(-1)
    entropy = -(pi * pi.log()).sum().expand(3)
    exactly = own = fresh = 0.0
    for a, chance in enumerate(pi.tolist()):
        after = (z + 0.5 * torch.eye(3, dtype=torch.float64)[a]).log_softmax(-1)
        delta = token_changes(after, pi.log(), entropy)[0]
        exactly += chance * (entropy_of(after.exp().tolist()) - entropy[0].item())
        own += chance * delta[a].item()
        fresh += chance * float((pi * delta).sum())
    assert fresh == pytest.approx(exactly, abs=1e-14)
    assert abs(own - exactly) > 0.1


# Toys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab", "horizon", "group"), [(5, 1, 3), (3, 3, 4)])
def test_the_exact_split_shares_every_tokens_change_among_its_samples(vocab: int, horizon: int, group: int) -> None:
    """By plain loops: counts, shares of (sign, clipped), tokens that nobody sampled, and the total over sequences."""
    model, runs = tree(vocab, horizon), 2
    z = normal(runs, 2, model.states, vocab, seed=1)
    new = z + 0.6 * normal(*z.shape, seed=2)
    draw = torch.rand(runs, 2, group, horizon, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tokens = model.sample(z, draw)
    states = model.prefix_states(tokens)
    index = states * vocab + tokens

    def taken(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).flatten(-2).gather(-1, index.flatten(-2)).reshape(runs, 2 * group, horizon)

    signs = torch.tensor([1.0, -1.0, 0.0, 2.0]).double()[torch.arange(2 * group) % 4].expand(runs, -1)
    batch = Batch(taken(new), taken(z), torch.ones(runs, 2 * group, horizon, dtype=torch.bool), signs)
    coefficient = etr.gradient_coefficient(etr.get("grpo"), batch)
    split, visits = exact_entropy_change(batch, coefficient, index, z, new, model)
    for r in range(runs):
        want: dict[tuple[int, ...], float] = defaultdict(float)
        total = 0.0
        for p in range(2):
            old, now = z[r, p].softmax(-1).tolist(), new[r, p].softmax(-1).tolist()
            reach: dict[int, float] = defaultdict(float)  # d(s) of the old policy
            for path, chance in sequences(old, vocab, horizon):
                for state, token in path:
                    reach[state * vocab + token] += chance
            total += sequence_entropy(now, vocab, horizon) - sequence_entropy(old, vocab, horizon)
            samples = defaultdict(list)
            for g, t in itertools.product(range(group), range(horizon)):
                a, moved = signs[r, p * group + g].item(), coefficient[r, p * group + g, t].item()
                label = (0 if a > 0 else 1 if a < 0 else 2, int(a != 0 and moved == 0))
                samples[index[r, p, g, t].item()].append(label)
            for s, a in itertools.product(range(model.states), range(vocab)):
                before, ratio = old[s][a], now[s][a] / old[s][a]
                h = entropy_of(old[s])
                delta = -ratio * math.log(now[s][a]) + math.log(before) + (1 - h) * (ratio - 1)
                labels = samples[s * vocab + a] or [(3, 0)]
                for sign, clipped in labels:
                    want[sign, binned(before), clipped] += reach[s * vocab + a] * delta / len(labels)
        for cell in itertools.product(range(4), range(5), range(2)):
            assert split.measured.sum[r][cell].item() == pytest.approx(want[cell], abs=1e-12)
        tokens_all = 2 * horizon
        assert split.measured.count[r].item() == pytest.approx(tokens_all)
        found = split.metrics()["entropy/change"].value[r] + visits.value[r]
        assert found.item() == pytest.approx(total / tokens_all, abs=1e-13)
    torch.testing.assert_close(
        split.metrics()["entropy/change"].value + visits.value,
        (exact.entropy(new, model) - exact.entropy(z, model)).mean(-1),
    )


def test_an_index_of_another_rollout_is_refused() -> None:
    model = tree(3, 2)
    z, batch = normal(1, 2, 4, 3), random_batch(0)[0]
    with pytest.raises(InputError, match="prompts, group, tokens"):
        exact_entropy_change(batch, batch.log_probs, torch.zeros(1, 2, 4, 2, dtype=torch.long), z, z, model)


def test_single_precision_batches_are_read_from_the_table() -> None:
    """A toy may train in float32; the split is that of the logits all the same."""
    model = tree(4, 1)
    z = normal(1, 2, 1, 4)
    new, index = z + 0.01 * normal(*z.shape, seed=5), torch.tensor([[[[0], [3]], [[1], [1]]]])
    ones = torch.ones(1, 4, 1)
    batch = Batch(ones * -1.0, ones * -1.0, ones.bool(), torch.tensor([[1.0, -1.0, 0.0, 0.0]]))
    pairs = [exact_entropy_change(part, ones, index, z, new, model)[0] for part in (batch, _double(batch))]
    torch.testing.assert_close(pairs[0].measured.sum, pairs[1].measured.sum, rtol=0, atol=0)
    change = (exact.entropy(new, model) - exact.entropy(z, model)).mean(-1)
    torch.testing.assert_close(pairs[0].metrics()["entropy/change"].value, change, rtol=0, atol=1e-15)


def _double(batch: Batch) -> Batch:
    wide = {name: getattr(batch, name).double() for name in ("log_probs", "old_log_probs", "advantages")}
    return dataclasses.replace(batch, **wide)
