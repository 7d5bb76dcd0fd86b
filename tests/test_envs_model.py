"""The exact model: sampling against plain loops, verdicts, components, clusters, hints, and input that does not fit."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from toy_envs import ExactModel, make_model

P, V, T, K = 3, 3, 2, 2
N = V**T


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_model() -> ExactModel:
    """Every optional field at once."""
    return ExactModel(
        V,
        T,
        rand(P, N, seed=0),
        components=rand(P, K, N, seed=1),
        scales=(3.0, 0.5),
        clusters=torch.arange(P * N).reshape(P, N) % 5,
        turns=(0, 1),
        prompt_tokens=torch.tensor([[4, 0], [4, 1], [5, 2]]),
    )


def tokens(runs: int = 2, group: int = 50, seed: int = 2) -> Tensor:
    return torch.randint(V, (runs, P, group, T), generator=torch.Generator().manual_seed(seed))


# --- sampling ---


def drawn_by_hand(model: ExactModel, logits: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse cumulative distribution, one token at a time."""
    out = torch.zeros(uniforms.shape, dtype=torch.int64)
    for run, prompt, member in itertools.product(*map(range, uniforms.shape[:-1])):
        written: tuple[int, ...] = ()
        prefixes = [p for t in range(model.horizon) for p in itertools.product(range(model.vocab_size), repeat=t)]
        for t in range(model.horizon):
            probs = logits[run, prompt, prefixes.index(written)].softmax(-1).tolist()
            total, token = probs[0], 0
            while total <= uniforms[run, prompt, member, t].item() and token < model.vocab_size - 1:
                token += 1
                total += probs[token]
            written = (*written, token)
        out[run, prompt, member] = torch.tensor(written)
    return out


@pytest.mark.parametrize("size", [(5, 1), (2, 4), (3, 3)])
def test_sampling_equals_a_plain_loop(size: tuple[int, int]) -> None:
    vocab, horizon = size
    model = ExactModel(vocab, horizon, torch.zeros(2, vocab**horizon, dtype=torch.float64))
    logits = 3 * rand(3, 2, model.states, vocab, seed=3)
    uniforms = rand(3, 2, 8, horizon, seed=4)
    assert torch.equal(model.sample(logits, uniforms), drawn_by_hand(model, logits, uniforms))


def test_a_prefix_is_kept_and_the_rest_follows_from_it() -> None:
    """Given the tokens that would have been drawn anyway nothing changes; given others, the later rows are theirs."""
    model = make_model("tree-easy")
    logits, uniforms = rand(2, 8, model.states, 3, seed=5), rand(2, 8, 30, 3, seed=6)
    free = model.sample(logits, uniforms)
    assert torch.equal(model.sample(logits, uniforms, prefix=free[..., :2]), free)
    hint = model.solutions[:, None, :1].expand(2, 8, 30, 1)
    hinted = model.sample(logits, uniforms, prefix=hint)
    assert torch.equal(hinted[..., :1], hint) and not torch.equal(hinted, free)
    certain = logits.clone()  # a policy that always gives the hint draws the rest in the same way
    certain[:, torch.arange(8), 0, model.solutions[:, 0]] += 1000
    assert torch.equal(model.sample(certain, uniforms), hinted)
    both = model.solutions[:, None, :2].expand(2, 8, 30, 2)
    given = torch.arange(30).remainder(3).expand(2, 8, 30)  # none, one, two, none, ...
    mixed = model.sample(logits, uniforms, prefix=both, given=given)
    assert torch.equal(mixed[..., 0::3, :], free[..., 0::3, :]) and torch.equal(
        mixed[..., 1::3, :], hinted[..., 1::3, :]
    )
    assert torch.equal(mixed[..., 2::3, :], model.sample(logits, uniforms, prefix=both)[..., 2::3, :])


def test_without_checks_everything_is_one_graph_that_looks_at_no_data() -> None:
    """Tracing with fullgraph fails on any branch that depends on the numbers in a tensor."""
    model = full_model()

    def step(logits: Tensor, uniforms: Tensor, noise: Tensor, hint: Tensor) -> tuple[Tensor, ...]:
        free = model.sample(logits, uniforms, check=False)
        sequences = model.sample(logits, uniforms, hint, check=False)
        rewards, parts = (read(sequences, noise, check=False) for read in (model.verify, model.outcomes))
        return free, rewards, parts, model.answers(sequences, check=False), model.prefix_states(free, check=False)

    args = (rand(2, P, 4, V, seed=7), rand(2, P, 6, T, seed=8), rand(2, P, 6, K, seed=9), tokens(group=6)[..., :1])
    traced = torch.compile(step, backend="eager", fullgraph=True)(*args)
    for found, wanted in zip(traced, step(*args), strict=True):
        assert torch.equal(found, wanted)


# --- rewards ---


def test_rewards_and_parts_by_hand() -> None:
    model, sequences = full_model(), tokens()
    noise = rand(2, P, 50, K, seed=10)
    rewards, parts, answers = model.verify(sequences, noise), model.outcomes(sequences, noise), model.answers(sequences)
    assert model.noise_size == K and model.components is not None and model.clusters is not None
    for r, p, g in itertools.product(range(2), range(P), range(50)):
        first, second = sequences[r, p, g].tolist()
        n = first * V + second
        won = [float(noise[r, p, g, k] < model.components[p, k, n]) for k in range(K)]
        assert parts[r, p, g].tolist() == won
        assert rewards[r, p, g].item() == pytest.approx((3.0 * won[0] + 0.5 * won[1]) / 3.5)
        assert answers[r, p, g] == model.clusters[p, n]
    wanted = (3.0 * model.components[:, 0] + 0.5 * model.components[:, 1]) / 3.5
    torch.testing.assert_close(model.verdict, wanted)


def test_training_sees_the_verdict_and_the_score_the_truth() -> None:
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    model = ExactModel(2, 1, truth, verdict=1 - truth)
    sequences = torch.tensor([[[0], [1]], [[0], [1]]])
    assert model.verify(sequences, torch.full((2, 2, 1), 0.5)).tolist() == [[0, 1], [1, 0]]
    assert model.optimal_value == 1.0 and model.solutions.tolist() == [[0], [1]]


def test_what_is_not_given_has_its_plain_meaning() -> None:
    model = ExactModel(V, T, rand(P, N, seed=0))
    assert torch.equal(model.verdict, model.success) and model.noise_size == 1
    assert model.components is model.clusters is model.turns is model.prompt_tokens is None
    sequences, noise = tokens(), rand(2, P, 50, 1, seed=11)
    assert torch.equal(model.answers(sequences), model.sequence_index(sequences))  # every sequence is an answer
    assert torch.equal(model.outcomes(sequences, noise)[..., 0], model.verify(sequences, noise))
    assert model.verify(sequences, noise.float()).dtype == torch.float32


def test_solutions_are_best_sequences() -> None:
    model = full_model()
    for prompt, solution in enumerate(model.solutions.tolist()):
        best = max(
            itertools.product(range(V), repeat=T), key=lambda y, p=prompt: model.success[p, y[0] * V + y[1]].item()
        )
        assert tuple(solution) == best


# --- bad input ---

ZERO = torch.zeros(1, 4, dtype=torch.float64)
BAD: list[tuple[Any, str]] = [
    (lambda: ExactModel(2, 2, ZERO, verdict=ZERO[:, :2]), "verdict has shape (1, 2); give [1, 4]"),
    (lambda: ExactModel(2, 2, ZERO, verdict=ZERO - 1), "verdict of prompt 0, sequence (arm) 0 is -1; give prob"),
    (
        lambda: ExactModel(2, 2, ZERO, components=ZERO + 2, scales=(1.0,)),
        "components has shape (1, 4); give [1, components, 4]",
    ),
    (
        lambda: ExactModel(2, 2, ZERO, components=ZERO[:, None] + 2, scales=(1.0,)),
        "components of prompt 0, component 0, sequence (arm) 0 is 2; give probabilities in [0, 1]",
    ),
    (
        lambda: ExactModel(2, 2, ZERO, components=ZERO[:, None], scales=(1.0, 2.0)),
        "scales has 2 numbers for 1 components; give one per component",
    ),
    (lambda: ExactModel(2, 2, ZERO, scales=(1.0,)), "scales has 1 numbers for 0 components; give one per"),
    (
        lambda: ExactModel(2, 2, ZERO, components=ZERO[:, None], scales=(0.0,)),
        "scales are (0.0,); give positive numbers",
    ),
    (
        lambda: ExactModel(2, 2, ZERO, ZERO + 1, components=ZERO[:, None], scales=(1.0,)),
        "verdict differs from the scaled sum of the components; leave it out",
    ),
    (
        lambda: ExactModel(2, 2, ZERO, clusters=torch.zeros(1, 4)),
        "clusters has shape (1, 4) and dtype torch.float32; give int64 [1, 4] without negative numbers",
    ),
    (lambda: ExactModel(2, 2, ZERO, clusters=torch.tensor([[0, 1, 2, -1]])), "without negative numbers"),
    (lambda: ExactModel(2, 2, ZERO, turns=(0,)), "turns are (0,); give 2 numbers, one per token"),
    (lambda: ExactModel(2, 2, ZERO, turns=(0, 2)), "turns are (0, 2); give 2 numbers"),
    (lambda: ExactModel(2, 2, ZERO, turns=(1, 1)), "turns are (1, 1); give 2 numbers"),
    (
        lambda: ExactModel(2, 2, ZERO, prompt_tokens=torch.zeros(2, 3, dtype=torch.int64)),
        "prompt_tokens has shape (2, 3) and dtype torch.int64; give int64 [1, any]",
    ),
    (
        lambda: full_model().sample(rand(P, 4, V, seed=0), rand(P, 6, T, seed=0), tokens(group=6)[0]),
        "prefix has shape (3, 6, 2); give (3, 6, 'k') with k below 2, so that a token is left to choose",
    ),
    (
        lambda: full_model().sample(rand(P, 4, V, seed=0), rand(P, 6, T, seed=0), tokens(group=6)[0, ..., :1] + 3),
        "outside the vocabulary; give tokens from 0 to 2",
    ),
    (
        lambda: full_model().sample(
            rand(P, 4, V, seed=0),
            rand(P, 6, T, seed=0),
            tokens(group=6)[0, ..., :1],
            given=torch.full((P, 6), 2),
        ),
        "given has shape (3, 6) and dtype torch.int64; give int64 of shape (3, 6), from 0 to the prefix's 1 tokens",
    ),
    (
        lambda: full_model().sample(rand(P, 4, V, seed=0), rand(P, 6, T, seed=0), given=torch.ones(P, 6).long()),
        "prefix has shape None; give (3, 6, 'k') with k below 2",
    ),
    (lambda: full_model().answers(tokens()[0, 0]), "sequences have shape (50, 2); give [..., 3, group, 2]"),
]


@pytest.mark.parametrize(("build", "sentence"), BAD)
def test_bad_input_is_one_sentence(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build()
