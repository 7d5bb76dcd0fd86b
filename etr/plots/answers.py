"""What the picture of each environment shows: exact numbers from the policies that training ended with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from etr import exact
from etr.plots.panels import Answer, Env, Histories, Panel, along, even, final, value
from etr.toy.recorder import SUCCESS_EDGES, History
from toy_envs import TwoStage
from toy_envs.multi_reward import PARTS

SEEN = (1, 2, 4, 8, 16, 32, 64)  # numbers of samples k


def by_difficulty(env: Env, histories: Histories) -> Answer:
    """The score of every prompt by itself, from hard to easy."""
    model = env.model
    start, order = model.success.mean(-1).sort()
    possible = model.success.amax(-1)[order] - start
    lines = final(histories, lambda z: (exact.expected_reward(z, model)[:, order] - start) / possible)
    labels = ("What was learnt, by prompt", "success of the uniform policy, hard to easy", "score of the prompt")
    scale = "logit" if float(start[-1]) > 0.5 else "log"
    panel = Panel(labels, start.tolist(), lines, ("optimum", torch.ones_like(start)), scale=scale)
    return [panel], "Score: expected success, 0 = uniform policy, 1 = the best that the prompt allows."


def bandit(env: Env, histories: Histories) -> Answer:
    """Region widths and scores by difficulty where prompts differ in it; else the arms that the policy ended with."""
    success = env.model.success
    if float(success.mean(-1).std()) > 1e-9:
        learnt, note = by_difficulty(env, histories)
        width = {name: history.width for name, history in histories.items() if not bool(history.width.isinf().any())}
        edges = torch.cat([torch.zeros(1), SUCCESS_EDGES, torch.ones(1)])
        labels = (
            "The budget: width of the region",
            "success rate of the sampled group",
            "upper − lower bound of the ratio",
        )
        budget = Panel(labels, ((edges[1:] + edges[:-1]) / 2).tolist(), width)
        return [budget, *learnt] if width else learnt, f"{note} Width: mean over training."
    ranked, order = success.sort(dim=-1, descending=True, stable=True)

    def by_rank(logits: Tensor) -> Tensor:
        probs = exact.sequence_log_probs(logits, env.model).exp()
        return probs.gather(-1, order.expand_as(probs)).mean(1)

    labels = ("Where the probability went", "success of the arm, from the best to the worst", "probability of the arm")
    ticks = [f"{p:.2g}" for p in ranked[0].tolist()]
    x = range(len(ticks))
    panel = Panel(labels, x, final(histories, by_rank), even("uniform", len(x)), ticks)
    return [panel], "Mean over prompts, each with its arms in order of success."


def noisy(env: Env, histories: Histories) -> Answer:
    """Probability that the verifier says right, and probability of being right."""
    tables = (env.model.verdict, env.model.success)
    lines = final(histories, lambda logits: torch.stack([value(env.model, t, logits) for t in tables], -1))
    best = torch.stack([(env.model.success * table).amax(-1).mean() for table in tables])
    labels = ("What is paid, and what is true", "", "probability after training")
    panel = Panel(labels, (0, 1), lines, ("always right", best), ("the verifier says right", "the answer is right"))
    return [panel], "Means over prompts."


def multi_mode(env: Env, histories: Histories) -> Answer:
    """Coverage of the right answers in k samples, and the probability of each of them."""
    model, clusters = env.model, env.model.clusters
    assert clusters is not None
    member = one_hot(clusters) * model.success.unsqueeze(-1)  # [P, V^T, answers]
    ways, order = member.sum(1).sort(dim=-1, descending=True, stable=True)
    modes = int((ways > 0).sum(-1).max())

    def masses(logits: Tensor) -> Tensor:  # of each right answer, the one with most ways first
        found = torch.einsum("rpn,pna->rpa", exact.sequence_log_probs(logits, model).exp(), member)
        return found.gather(-1, order.expand_as(found))[..., :modes]

    def seen(logits: Tensor) -> Tensor:
        return torch.stack([1 - ((1 - masses(logits)) ** k).mean((-2, -1)) for k in SEEN], -1)

    alike = torch.tensor([1 - (1 - 1 / modes) ** k for k in SEEN])
    labels = ("Right answers seen in k samples", "samples k", "share of all right answers")
    ticks = [str(k) for k in SEEN]
    shown = Panel(labels, SEEN, final(histories, seen), ("all alike", alike), ticks, scale="log")
    labels = ("Which of them are kept", "right answer, named by the number of ways to it", "probability")
    ticks = [f"{count:.0f}" for count in ways[0, :modes].tolist()]
    lines = final(histories, lambda logits: masses(logits).mean(1))
    kept = Panel(labels, range(modes), lines, even("all alike", modes), ticks)
    return [shown, kept], "Means over prompts. The ways to an answer are the sequences that end in it and are accepted."


def chain(env: Env, histories: Histories) -> Answer:
    """Probability of every token of the key after a right start."""
    panel = along(env, histories, "How much of the key is known", slice(None))
    return [panel], "Probability of the right token when all before it were right, mean over prompts."


def copy(env: Env, histories: Histories) -> Answer:
    """Probability of every token of the answer after a right start, by instruction."""
    half = env.model.prompts // 2
    panels = [along(env, histories, "Copy", slice(half)), along(env, histories, "Reverse", slice(half, None))]
    return panels, "Probability of the right token when all before it were right, mean over prompts."


def two_stage(env: Env, histories: Histories) -> Answer:
    """Which questions are asked, and how often the answer is right after each of them."""
    assert isinstance(env, TwoStage)
    model = env.model
    gain, order = env.information_gain.sort(-1)

    def asked(logits: Tensor) -> Tensor:
        probs = exact.log_policy(logits, model).exp()[..., 0, :]
        return probs.gather(-1, order.expand_as(probs)).mean(1)

    def after(logits: Tensor) -> Tensor:  # the value of the state behind each question
        values = exact.action_values(logits, model)[..., 0, :]
        return values.gather(-1, order.expand_as(values)).mean(1)

    best = model.success.unflatten(1, (model.vocab_size, -1)).amax(-1).gather(-1, order).mean(0)
    x, axis = gain.mean(0).tolist(), "information gain of the question (nats)"
    uniform = even("uniform", model.vocab_size)
    ask = Panel(("What is asked", axis, "probability of asking"), x, final(histories, asked), uniform)
    labels = ("What the answer is worth then", axis, "success after that question")
    answer = Panel(labels, x, final(histories, after), ("possible", best))
    return [ask, answer], "Right: each question is asked by a reset, whether the policy would ask it or not."


def multi_reward(env: Env, histories: Histories) -> Answer:
    """Expected value of every part of the reward, whatever its scale."""
    model, parts = env.model, env.model.components
    assert parts is not None
    lines = final(histories, lambda z: torch.stack([value(model, part, z) for part in parts.unbind(1)], -1))
    chosen = model.success.argmax(-1)
    best = torch.stack([parts[p, :, n] for p, n in enumerate(chosen.tolist())]).mean(0)
    ticks = [f"{name}\n(scale {scale:g})" for name, scale in zip(PARTS, model.scales, strict=False)]
    labels = ("The parts of the reward, each by itself", "", "expected value after training")
    return [Panel(labels, range(len(ticks)), lines, ("best total", best), ticks)], "Means over prompts."


def random(env: Env, histories: Histories) -> Answer:
    """Entropy and true success along training: nothing can be learnt, so whatever moves, moves by itself."""
    steps = next(iter(histories.values())).steps
    panels = []
    for metric, title, unit, start in (
        ("entropy", "Entropy", "nats per token", torch.tensor(env.model.vocab_size).log().item()),
        ("reward", "True success", "probability", env.model.uniform_value),
    ):
        lines = {name: history.curves[metric] for name, history in histories.items()}
        reference = ("at the start", torch.full((len(steps),), start))
        panels.append(Panel((title, "training step", unit), steps, lines, reference))
    return panels, "The reward does not depend on the answer."


def table_of_sums(env: Env, history: History) -> Tensor:
    """P(right) of every sum a + b, mean over seeds, `[m, m]`."""
    size = round(env.model.prompts**0.5)
    return exact.expected_reward(history.logits, env.model).mean(0).reshape(size, size)


ANSWERS: dict[str, Callable[[Env, Histories], Answer]] = {
    "bandit": bandit,
    "noisy": noisy,
    "multi-mode": multi_mode,
    "key-chain": chain,
    "tree": by_difficulty,
    "copy": copy,
    "two-stage": two_stage,
    "multi-reward": multi_reward,
    "random": random,
}
