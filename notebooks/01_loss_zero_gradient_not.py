# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why is the GRPO loss 0, and why does the model still learn?
#
# ## The question
#
# You start GRPO on a language model and watch the log. The first line says `loss: 0.0000`. So do the next hundred.
# You look for the bug. Meanwhile the reward goes up.
#
# Is the loss broken? And if it is not: what is the model following, when there is nothing left to minimise?

# %% [markdown]
# ## Predict first
#
# One prompt, four sampled answers. A checker gives the first one reward 1 and the others 0. GRPO is about to make its
# very first update. Write your guesses down; guessing wrong is the fastest way to learn.
#
# 1. What number does the loss show?
# 2. Which of the four answers will become more likely, and by how much compared with the others?
# 3. You train on. The reward doubles. What has the loss done?
# 4. Another prompt: all four answers are right. What does the model learn from them?

# %%
import dataclasses
import os
from itertools import islice

import torch

import etr
from etr import exact, laws, stats
from etr.plots import seed_bands
from etr.plots.style import End, finish, new_figure, objective_color, styled
from etr.toy.rollout import rollout, taken_log_probs, uniforms
from etr.toy.train import ToyConfig, train
from etr.toy.update import LEARNING_RATES
from toy_envs import make_model

torch.set_num_threads(1)  # small tensors: one core is the fastest
FAST = os.environ.get("FAST") == "1"  # shorter loops, for tests; the conclusions stay the same
SEEDS, ITERATIONS, GROUP = (16, 60, 16) if FAST else (64, 60, 16)
grpo = etr.get("grpo")
print(f"etr {etr.__version__}, torch {torch.__version__}, {SEEDS} seeds (0 to {SEEDS - 1}), {ITERATIONS} iterations")

# %% [markdown]
# ## 1. Rewards become advantages
#
# GRPO compares each answer with the other answers to the same prompt. Its **advantage** is a z-score:
#
# > Aᵢ = (Rᵢ − mean of the group) / (standard deviation of the group)
#
# The z-scores of a group always add up to 0: what one answer is above the mean, the others are below it.

# %%
rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
prompt = torch.zeros(4, dtype=torch.long)  # all four answer the same prompt
advantages = grpo.advantage(rewards, prompt)
print("advantages", [round(a, 3) for a in advantages.tolist()], " sum", round(advantages.sum().item(), 6))

# %% [markdown]
# ## 2. The loss is 0
#
# The **ratio** r = π(answer) / π_old(answer) says how much more likely the current policy π makes an answer than the
# policy π_old that wrote it. GRPO minimises
#
# > loss = −meanᵢ min(r·Aᵢ, clip(r, 0.8, 1.2)·Aᵢ)
#
# At the first update nothing has moved: π = π_old, so r = 1 for every answer. Then the loss is −mean(A) = 0.
# It is 0 for good answers and for bad ones, for a clever model and for a stupid one.
#
# We use the smallest language model there is: four possible answers of one token each, all equally likely.


# %%
def make_batch(logits: torch.Tensor, old_logits: torch.Tensor) -> etr.Batch:
    """The four answers, one token each: `[responses, tokens]` = `[4, 1]`."""
    return etr.Batch(
        log_probs=logits.log_softmax(-1)[:, None],
        old_log_probs=old_logits.log_softmax(-1)[:, None],
        response_mask=torch.ones(4, 1, dtype=torch.bool),
        advantages=advantages,
    )


start = torch.zeros(4)
logits = start.clone().requires_grad_()
batch = make_batch(logits, start)
loss = etr.policy_loss(grpo, batch).loss
print(f"loss {abs(loss.item()):.6f}")

# %% [markdown]
# ## 3. The gradient is not
#
# A function can be 0 at a point and steep there. So ask for the slope.

# %%
loss.backward()
step = -logits.grad  # gradient descent goes this way
coefficient = etr.gradient_coefficient(grpo, batch).squeeze(-1)
print("push on the four logits  ", [round(g, 3) for g in step.tolist()])
print("gradient coefficient c   ", [round(c, 3) for c in coefficient.tolist()])
print("advantage A              ", [round(a, 3) for a in advantages.tolist()])

# %% [markdown]
# The right answer is pushed up, the wrong ones are pushed down. How hard is decided by the **gradient coefficient**
#
# > c = ∂(objective) / ∂ log π(token)
#
# and at the first update **c is the advantage, exactly**. This is no accident: the derivative of r·A by log π is r·A,
# and r = 1. Every objective in this package has that property, because every update in this field has one form:
#
# > update = Σ w · c · ∇ log π(token)
#
# (w is only the bookkeeping of means). *The advantages add up to 0; the pushes do not cancel, because each of them
# moves a different answer.*
#
# Here is the loss if we walk along the gradient, step by step.


# %% tags=["hide-input"]
@styled
def walk_picture(sizes: torch.Tensor, values: torch.Tensor, chance: torch.Tensor, slope: float):
    figure = new_figure(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    color = objective_color("grpo")
    left.plot(sizes, values, color=color)
    left.plot(sizes, slope * sizes, color="#999999", lw=1, ls="--")
    left.plot(0, 0, "o", color=color)
    left.annotate("value 0", (0, 0), xytext=(12, -2), textcoords="offset points", va="center")
    left.set(title="Loss", xlabel="step along the gradient", ylim=(1.25 * values.min().item(), 0.03))
    right.plot(sizes, chance, color=color)
    right.set(title="Chance of the right answer", xlabel="step along the gradient")
    note = "Dashed: the slope at the start. Where the loss turns flat, every answer has left the region [0.8, 1.2]."
    return finish(figure, note)


sizes = torch.linspace(0, 2.0, 101)
walk = torch.stack([etr.policy_loss(grpo, make_batch(start + s * step, start)).loss for s in sizes]).detach()
chance = torch.stack([(start + s * step).softmax(-1)[0] for s in sizes])
slope = -step.square().sum().item()
print(f"at the start: loss {abs(walk[0]):.4f}, slope {slope:.4f}; chance of the right answer {chance[0]:.3f}")
print(f"at the end:   loss {walk[-1]:.4f};               chance of the right answer {chance[-1]:.3f}")
walk_picture(sizes, walk, chance, slope)

# %% [markdown]
# So the value of this loss is a *bookkeeping zero*. It starts at 0 for every batch, and only its slope carries news.
#
# ## 4. What the number does during training
#
# Now a real run: a bandit with 16 prompts, from hard to easy, and 10 possible answers each. For every batch of sampled
# answers we may update once (K = 1) or several times (K = 4) before sampling anew. This is all of GRPO:


# %%
model = make_model("bandit-spread")


def learn(updates: int, beta: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """All seeds at once. Returns the loss `[seeds, iterations, updates]` and the exact expected reward after each."""
    recipe = etr.load_recipe("grpo", {"beta": beta, "optimizer.updates": updates})
    logits = torch.zeros(SEEDS, model.prompts, model.states, model.vocab_size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATES["adam"])
    losses, rewards = [], []
    for draw in islice(uniforms(range(SEEDS), (model.prompts, GROUP, 2)), ITERATIONS):
        batch, index = rollout(recipe, model, logits, draw)  # sample answers, check them, compare within groups
        for _ in range(updates):
            current = dataclasses.replace(batch, log_probs=taken_log_probs(logits, index))
            loss = etr.policy_loss(recipe.objective, current).loss  # one number per seed
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
        rewards.append(exact.expected_reward(logits.detach(), model).mean(-1))
    return torch.stack(losses, -1).unflatten(-1, (ITERATIONS, updates)), torch.stack(rewards, -1)


once, reward_once = learn(updates=1)
four, reward_four = learn(updates=4)
steps = list(range(1, ITERATIONS + 1))
print(f"K = 1: largest |loss| of all {once.numel()} updates: {once.abs().max():.1e}")
print(f"       expected reward {reward_once[:, 0].mean():.3f} -> {reward_once[:, -1].mean():.3f}")
print("K = 4: mean loss at inner update 1, 2, 3, 4:", [round(x, 4) + 0.0 for x in four.mean((0, 1)).tolist()])

# %% [markdown]
# With one update per batch the loss is 0 **at every single update of the whole training**, and the reward rises.
# With four it falls below 0 while a batch is being used, and jumps back to 0 with the next batch: a saw, not a descent.


# %% tags=["hide-input"]
@styled
def saw_picture(curves: dict[str, torch.Tensor], batches: int = 15):
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    ends = []
    for (name, values), color in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        flat = values.mean(0)[:batches].flatten()
        x = torch.arange(len(flat)) / values.shape[-1]
        axes.plot(x, flat, color=color, lw=1.6)
        ends.append(End(float(x[-1]), float(flat[-1]), name, color))
    axes.set(title="Loss: always back to 0 with the next batch", xlabel="batches of answers used up", ylabel="loss")
    return finish(figure, f"Means over {SEEDS} seeds, the first {batches} batches.", {axes: ends})


saw_picture({"K = 1": once, "K = 4": four})

# %% [markdown]
# Is that loop the real thing? The trainer of the package, on the same seeds, must end at the same place:

# %%
config = ToyConfig(iterations=ITERATIONS, group_size=GROUP, seeds=SEEDS)
history = train(etr.load_recipe("grpo", {"optimizer.updates": 1}), model, config)
difference = (history.curves["reward"] - reward_once).abs().max().item()
print(f"largest difference in expected reward between our loop and etr.toy.train: {difference:.1e}")
seed_bands({"grpo": history.curves["reward"]}, history.steps, "expected reward", "Learning while the loss shows 0")

# %% [markdown]
# ## 5. And a loss that rises?
#
# The GRPO paper adds a penalty β·KL that keeps the policy near a reference, here the policy we started from. KL is 0
# at the start and can only grow when the policy moves. So with β > 0 the loss **rises from 0 while the model learns**.

# %%
pulled, reward_pulled = learn(updates=1, beta=0.04)
print("      loss, first and last batch:", [round(pulled.mean(0)[i].item(), 4) + 0.0 for i in (0, -1)])
print("    reward, first and last batch:", [round(reward_pulled.mean(0)[i].item(), 3) for i in (0, -1)])
seed_bands({"grpo": pulled[:, :, 0]}, steps, "loss", "With a KL penalty (β = 0.04) the loss rises as the model learns")

# %% [markdown]
# ## 6. A table that settles it
#
# One random batch of answers of different lengths, and a dozen objectives at their first update. The losses disagree.
# They are 0 only where each answer counts once (GRPO's own mean); a mean over all tokens lets long answers count more.
# REINFORCE's loss is −A·log π, which is not 0 at all. But the pushes agree: c = A everywhere.

# %%
table = {}
DOZEN = "cispo dapo dr_grpo etr etr_implicit etr_proportional etr_surprise grpo grpo_wide gspo ppo reinforce"
for name in DOZEN.split():
    objective = etr.get(name)
    some = laws.random_batch(objective)
    some = dataclasses.replace(some, log_probs=some.old_log_probs)  # the first update: nothing has moved
    value = etr.policy_loss(objective, some).loss.item()
    kept = some.response_mask
    gap = (etr.gradient_coefficient(objective, some) - some.token_advantages)[kept].abs().max().item()
    table[name] = (value, gap)
    print(f"{name:18} loss {round(value, 4) + 0.0:7.4f}    largest |c − A| {gap:.0e}")

# %% [markdown]
# ## 7. The other zero: dead groups
#
# There is a second way to get a loss of 0, and that one is bad news. If all answers of a group get the same reward,
# every answer equals the mean, so A = 0 and **c = 0**: the group was sampled, paid for, and teaches nothing.
# If each answer is right with chance p, a group of G is dead with probability
#
# > p^G + (1 − p)^G

# %%
dead = torch.ones(4)
print("advantages of a group with four right answers:", grpo.advantage(dead, prompt).tolist())


def dead_share(p: torch.Tensor | float, size: int) -> torch.Tensor:
    p = torch.as_tensor(p, dtype=torch.float64)
    return p**size + (1 - p) ** size


generator, trials = torch.Generator().manual_seed(0), 20_000
checks = []
for p, size in ((0.05, 4), (0.05, 8), (0.05, 16), (0.5, 4), (0.5, 8)):
    right = (torch.rand(trials, size, generator=generator) < p).double()
    seen = (right.mean(-1) % 1 == 0).double().mean().item()
    margin = 1.96 * (seen * (1 - seen) / trials) ** 0.5  # 95 % interval of a share
    checks.append((dead_share(p, size).item(), seen, margin))
    print(f"p = {p:4}  G = {size:2}   formula {checks[-1][0]:.3f}   counted {seen:.3f} ± {margin:.3f}")


# %% tags=["hide-input"]
@styled
def dead_picture():
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    p = torch.logspace(-3, -0.30103, 400)  # up to 1/2; the other half is the mirror image
    for size, shade in zip((4, 16, 64, 256), ("#79B4DC", "#3A8FC8", "#0072B2", "#003F63"), strict=True):
        axes.plot(p, dead_share(p, size), color=shade)
        place = 1 - 0.5 ** (1 / size)  # here (1 − p)^G is one half
        axes.annotate(f"G = {size}", (place, 0.5), xytext=(5, 6), textcoords="offset points", color=shade)
    axes.set_xscale("log")
    axes.set_xticks([0.001, 0.01, 0.1, 0.5], ["0.001", "0.01", "0.1", "0.5"])
    axes.set(xlabel="success rate p", ylabel="share of dead groups", ylim=(0, 1.02))
    axes.set_title("How often a group teaches nothing")
    return finish(figure, "p^G + (1 − p)^G for hard prompts; easy ones (p > 1/2) are the mirror image.")


dead_picture()

# %% [markdown]
# The same during training. At first some groups are dead because the prompt is too hard. They come alive when the model
# gets its first answers right, and die again, of success, when the prompt is solved.

# %%
share = history.curves["group/homogeneous_frac"]
early, late = share[:, 10:20].mean(-1), share[:, -10:].mean(-1)
print(f"dead groups, first batch      {share[:, 0].mean():.2f}")
print(f"dead groups, batches 11 to 20 {early.mean():.2f}")
print(f"dead groups, last ten batches {late.mean():.2f}")
seed_bands({"grpo": share}, history.steps, "share of dead groups", "Solved prompts stop teaching")

# %% [markdown]
# ## Why people are confused
#
# * **In supervised learning the loss is a distance**: 0 means done. Here it is a *surrogate*: a tool built so that its
#   gradient at the current policy is right. Its value has no meaning across batches.
# * **Two different zeros look the same in the log.** "0 because advantages cancel" is healthy. "0 because all groups
#   are dead" means nothing is learned. The loss cannot tell them apart, the share of dead groups can.
# * **Small numbers that are not 0** come from several updates per batch (negative), from a KL penalty (positive), or
#   from a mean over tokens (either sign). None of them says how good the model is.
#
# Watch these instead: reward, entropy, KL, the share of dead groups, and the share of tokens without gradient.
# The next text explains the last one.

# %% [markdown]
# ## Exercises
#
# ### 1. Predict the picture
#
# A prompt has p = 0.01, and you can afford G = 64. Guess first: how many of 100 such groups are dead? And how large
# must G be so that at most half are? Replace the two guesses and run the cell.

# %%
guess_dead_of_100, guess_group_size = 0, 0
need = next(size for size in range(2, 1000) if dead_share(0.01, size) <= 0.5)
print(f"you: {guess_dead_of_100} of 100; computed: {100 * dead_share(0.01, 64):.0f}")
print(f"you: G = {guess_group_size}; computed: G = {need}")

# %% [markdown]
# ### 2. Fill the hole
#
# Write the gradient of the GRPO loss by hand, at the first update, for one group: how does the loss change with the
# log-probability of each answer? (Two facts are enough: c = A, and the loss is *minus* the *mean* over the group.)


# %%
def gradient_by_hand(rewards: torch.Tensor) -> torch.Tensor:
    """∂ loss / ∂ log π of each answer, `[G]`."""
    return torch.full_like(rewards, torch.nan)  # ← your line


def is_right(gradient) -> bool:
    """Compare with automatic differentiation on 20 random groups that are not dead."""
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        some = (torch.rand(8, generator=rng) < 0.5).float()
        some[0], some[1] = 1.0, 0.0
        leaf = torch.full((8, 1), -2.0, requires_grad=True)
        group = torch.zeros(8, dtype=torch.long)
        mask = torch.ones(8, 1, dtype=torch.bool)
        etr.policy_loss(grpo, etr.Batch(leaf, leaf.detach(), mask, grpo.advantage(some, group))).loss.backward()
        if not torch.allclose(gradient(some), leaf.grad.squeeze(-1), atol=1e-6):
            return False
    return True


print("exercise 2:", "right!" if is_right(gradient_by_hand) else "not yet")

# %% [markdown]
# ### 3. Hunt the planted bug
#
# Three colleagues wrote the loss of two groups of four answers (the second group is dead). They differ in one line
# each, and all three print 0. Two of them have a bug that ruins training. Which two, and what will each do to the
# model? Looking at the loss will not help you.


# %%
def zscore(groups: torch.Tensor) -> torch.Tensor:
    return (groups - groups.mean(1, keepdim=True)) / (groups.std(1, correction=0, keepdim=True) + 1e-6)


def clipped_loss(log_probs: torch.Tensor, old_log_probs: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    r = (log_probs - old_log_probs).exp()
    return -torch.minimum(r * a, r.clamp(0.8, 1.2) * a).mean()


def loss_a(log_probs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return clipped_loss(log_probs, log_probs.detach(), zscore(rewards.reshape(2, 4)).flatten())


def loss_b(log_probs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return clipped_loss(log_probs, log_probs.detach(), zscore(rewards.reshape(1, 8)).flatten())


def loss_c(log_probs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return clipped_loss(log_probs, log_probs, zscore(rewards.reshape(2, 4)).flatten())


two_groups = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
found = {}
for name, suspect in {"a": loss_a, "b": loss_b, "c": loss_c}.items():
    leaf = torch.full((8,), -2.0, requires_grad=True)
    value = suspect(leaf, two_groups)
    (found[name],) = torch.autograd.grad(value, leaf)
    print(f"loss_{name} = {abs(value.item()):.4f}")
# Your move: print found["a"], found["b"] and found["c"].

# %% [markdown]
# **Solutions** are in the next cell.

# %% tags=["hide-cell"]
# 1: dead groups 53 of 100; G = 69.
# 2: -(rewards - rewards.mean()) / rewards.std(correction=0) / len(rewards)
# 3: loss_b normalises over the whole batch, so the dead group is pushed up although it teaches nothing, and easy
#    prompts win over hard ones. loss_c forgot to detach the old log-probs: r is 1 whatever the model does, so the
#    gradient is 0 and the model never moves. (etr.Batch detaches the old log-probs for you.)


def solution(rewards: torch.Tensor) -> torch.Tensor:
    return -(rewards - rewards.mean()) / rewards.std(correction=0) / len(rewards)


for name, gradient in found.items():
    print(f"gradient of loss_{name}", [round(g, 2) + 0.0 for g in gradient.tolist()])

# %% [markdown]
# ## What we found
#
# Every claim of this text, as a check that fails when it stops being true. Intervals are 95 % bootstrap intervals over
# the seeds.


# %%
def interval(values: torch.Tensor) -> stats.Interval:
    """Interquartile mean over seeds `[seeds]` with its 95 % interval."""
    rng = torch.Generator().manual_seed(0)
    return stats.stratified_bootstrap(values[None], lambda s: stats.iqm(s.flatten(-2)), rng)


# At the first update the loss is 0, the gradient is not, and the coefficient is the advantage.
assert abs(loss.item()) < 1e-6
assert step.norm() > 0.3
assert torch.equal(coefficient, advantages)
assert abs(advantages.sum().item()) < 1e-6
assert walk[10] < -0.04 and abs(slope - (walk[1] - walk[0]).item() / sizes[1].item()) < 0.02

# K = 1: the loss stays 0 while the reward rises by more than 0.2.
gain = interval(reward_once[:, -1] - reward_once[:, 0])
print(f"K = 1, gain in expected reward: {gain.estimate:.3f} [{gain.low:.3f}, {gain.high:.3f}]")
assert once.abs().max() < 1e-5
assert gain.low > 0.2
assert difference < 1e-6

# K = 4: 0 at the first inner update of every batch, below 0 at the last.
last = interval(four[:, :, -1].mean(-1))
print(f"K = 4, loss at the last inner update: {last.estimate:.4f} [{last.low:.4f}, {last.high:.4f}]")
assert four[:, :, 0].abs().max() < 1e-5
assert last.high < 0

# A KL penalty makes the loss rise while the reward rises.
rise = interval(pulled[:, -1, 0] - pulled[:, 0, 0])
print(f"β = 0.04, rise of the loss: {rise.estimate:.3f} [{rise.low:.3f}, {rise.high:.3f}]")
assert rise.low > 0 and interval(reward_pulled[:, -1] - reward_pulled[:, 0]).low > 0.2

# Objectives disagree about the loss and agree about the gradient.
assert abs(table["grpo"][0]) < 1e-9 and abs(table["reinforce"][0]) > 0.01
assert max(gap for _, gap in table.values()) < 1e-9

# Dead groups: no gradient; the formula gives their share; solved prompts make more of them.
assert grpo.advantage(dead, prompt).eq(0).all()
assert all(abs(formula - seen) < 2 * margin for formula, seen, margin in checks)
more = interval(late - early)
print(f"rise of the share of dead groups: {more.estimate:.2f} [{more.low:.2f}, {more.high:.2f}]")
assert more.low > 0

# The exercises can be solved, and not by doing nothing.
assert is_right(solution) and not is_right(gradient_by_hand)
assert need == 69 and round(100 * dead_share(0.01, 64).item()) == 53
assert found["a"][4:].eq(0).all() and found["a"][0] < 0  # right: the dead group gets no push
assert found["b"][4:].abs().min() > 0.01  # bug: it does
assert found["c"].eq(0).all()  # bug: nothing moves
print("All conclusions hold.")
