# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does clipping do, and what makes a region elastic?
#
# ## The question
#
# PPO, GRPO and their children *clip*. The log says `clip_ratio: 0.000` for a while and then `0.31`. What was clipped:
# the ratio, the gradient, the model? And why should all answers share one range, 0.8 to 1.2? ETR says they should not.

# %% [markdown]
# ## Predict first
#
# r = π(token) / π_old(token) is the ratio, the region is [0.8, 1.2], A is the advantage. Write down your guesses.
#
# 1. A = +1 and r has grown to 1.5. Does this token still get a gradient? And at r = 0.5?
# 2. The same two questions for A = −1.
# 3. Which share of the tokens is clipped at the very first update on a batch of answers?
# 4. A hard prompt: 1 of 16 answers is right. Should that answer be allowed to move more than usual, or less?

# %%
import dataclasses
import os
from itertools import islice

import torch

import etr
from etr import laws, stats
from etr.batch import Mean
from etr.diagnostics import clipped
from etr.plots import entropy_reward_phase, region_landscape, seed_bands, surrogate_curves, width_by_success_rate
from etr.plots.comparison import EDGES
from etr.plots.style import End, finish, new_figure, objective_color, styled
from etr.toy.compare import compare
from etr.toy.rollout import rollout, taken_log_probs, uniforms
from etr.toy.train import ToyConfig, train
from etr.toy.update import LEARNING_RATES
from toy_envs import make_model

torch.set_num_threads(1)  # small tensors: one core is the fastest
FAST = os.environ.get("FAST") == "1"  # shorter loops, for tests; the conclusions stay the same
SEEDS, ITERATIONS = (128, 40) if FAST else (256, 100)
grpo, elastic = etr.get("grpo"), etr.get("etr")
print(f"etr {etr.__version__}, torch {torch.__version__}, {SEEDS} seeds (0 to {SEEDS - 1}), {ITERATIONS} iterations")

# %% [markdown]
# ## 1. The ratio and its region
#
# An answer was sampled from the old policy, and we use it for several updates. Meanwhile the policy moves. The ratio r
# tells how far it has moved at this token: 1 is nowhere, 2 is twice as likely. The further it moves, the less the old
# answers say about the new policy. So one names a **region** for r, for example [1 − ε, 1 + ε] with ε = 0.2, and stops
# pushing a token that has left it. GRPO maximises, for each token,
#
# > min(r·A, clip(r, 1 − ε, 1 + ε)·A)
#
# ## 2. Clipping is a mask on the gradient
#
# What reaches the model is not this value but its slope, the gradient coefficient c = ∂(objective) / ∂ log π(token).
# We let r run from 0.4 to 1.8 and ask the package for both.


# %%
def one_token(ratio: torch.Tensor, advantage: torch.Tensor, p: torch.Tensor | float = 0.5) -> etr.Batch:
    """Answers of one token with given ratios and advantages, from groups with success rate p: all `[responses]`."""
    p = torch.as_tensor(p, dtype=ratio.dtype).expand(ratio.shape)
    old = torch.full((len(ratio), 1), -2.0, dtype=ratio.dtype)
    group = etr.GroupStats(mean=p, var=p * (1 - p), size=torch.full_like(p, 16))
    return etr.Batch(old + ratio.log()[:, None], old, torch.ones_like(old, dtype=torch.bool), advantage, group)


def sweep(objective: etr.Objective, ratio: torch.Tensor) -> dict[str, torch.Tensor]:
    """Objective and gradient coefficient over r, for A = +1 and A = −1."""
    curves = {"ratio": ratio}
    for sign, a in (("pos", 1.0), ("neg", -1.0)):
        batch = one_token(ratio, torch.full_like(ratio, a))
        curves[f"value_{sign}"] = etr.policy_loss(objective, batch).per_token.squeeze(-1)
        curves[f"coef_{sign}"] = etr.gradient_coefficient(objective, batch).squeeze(-1)
    return curves


curves = sweep(grpo, torch.linspace(0.4, 1.8, 281, dtype=torch.float64))
four = sweep(grpo, torch.tensor([1.5, 0.5], dtype=torch.float64))
print("A = +1:   c at r = 1.5 is {:.1f},   c at r = 0.5 is {:.1f}".format(*four["coef_pos"].tolist()))
print("A = −1:   c at r = 1.5 is {:.1f},  c at r = 0.5 is {:.1f}".format(*(four["coef_neg"] + 0.0).tolist()))
surrogate_curves({"grpo": curves})

# %% [markdown]
# Read the lower picture. A good token (A = +1) loses its gradient above 1.2: it has been made likely enough. A bad one
# (A = −1) loses it below 0.8: it has been made unlikely enough. **On the other side nothing is clipped.** A good token
# at r = 0.5 went the wrong way, by the pull of other tokens, and it keeps its gradient so that it can come back.
# Elsewhere c is r·A.
#
# So clipping does not hold the ratio inside the region, nor the model. It is a *mask*: c = 0 or not.

# %% [markdown]
# ## 3. Two ways to count, two numbers
#
# Many programs log the share of tokens with |r − 1| > ε as "clip fraction". But half of these tokens may have moved
# against their advantage, and those were not clipped at all. The honest count is: A ≠ 0 and c = 0.

# %%
some = laws.random_batch(grpo)  # 16 random answers whose tokens moved at random
moved = ((some.log_probs - some.old_log_probs).exp() - 1).abs() > 0.2
signal = some.response_mask & (some.token_advantages != 0)
naive_share = Mean.of(moved.double(), signal).value.item()
zero_share = clipped(grpo, some)["region/zero_grad_frac"].value.item()
print(f"|r − 1| > ε:     {naive_share:.2f} of the tokens")
print(f"zero gradient:   {zero_share:.2f} of the tokens")

# %% [markdown]
# ## 4. Why the clip fraction is 0 at first, and grows
#
# At the first update on a batch, π is π_old. Every r is 1, and 1 lies in every region: **nothing is clipped, by
# construction**. Each further update moves the ratios. Here are eight updates on the same answers, for a bandit with
# 16 prompts and 10 possible answers each, as means over the first ten batches. (The second update still shows 0 because
# one step of this optimiser changes log-probabilities by about 0.1, which does not reach the bound yet.)

# %%
model = make_model("bandit-spread")


def shares(objective: etr.Objective, updates: int = 8, batches: int = 10) -> dict[str, torch.Tensor]:
    """Both counts before each inner update, `[seeds, updates]`."""
    recipe = etr.Recipe(objective.name, objective)
    logits = torch.zeros(SEEDS, model.prompts, model.states, model.vocab_size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATES["adam"])
    zero, naive = torch.zeros(batches, updates, SEEDS), torch.zeros(batches, updates, SEEDS)
    for b, draw in enumerate(islice(uniforms(range(SEEDS), (model.prompts, 16, 2)), batches)):
        batch, index = rollout(recipe, model, logits, draw)
        for k in range(updates):
            current = dataclasses.replace(batch, log_probs=taken_log_probs(logits, index))
            out = etr.policy_loss(objective, current)
            outside = ((out.log_ratio.detach().exp() - 1).abs() > 0.2).float()
            naive[b, k] = Mean.of(outside, current.response_mask & (current.token_advantages != 0)).value
            zero[b, k] = clipped(objective, current)["region/zero_grad_frac"].value
            optimizer.zero_grad()
            out.loss.sum().backward()
            optimizer.step()
    return {"|r − 1| > ε": naive.mean(0).T, "zero gradient": zero.mean(0).T}


counts = shares(grpo)
for name, values in counts.items():
    print(f"{name:14}", [round(x, 3) for x in values.mean(0).tolist()])
figure = seed_bands(counts, list(range(1, 9)), "share of tokens", "Clipping starts at 0 and grows with every update")
figure.axes[0].set_xlabel("update on the same batch")
figure

# %% [markdown]
# A consequence that saves hours: **with one update per batch (K = 1) no region ever acts.** GRPO, ETR and all their
# relatives are then the same algorithm. Let us take this literally and compare the trained policies bit for bit.

# %%
config = ToyConfig(iterations=20, seeds=32)
final = {
    name: train(etr.load_recipe(name, {"optimizer.updates": 1}), model, config).logits
    for name in ("grpo", "etr", "dapo")
}
same = all(torch.equal(final["grpo"], logits) for logits in final.values())
print("K = 1, after 20 batches, 32 seeds: grpo, etr and dapo have bit-equal policies:", same)

# %% [markdown]
# ## 5. What makes a region elastic
#
# GRPO gives every token of every answer the same ε. ETR (Elastic Trust Regions, arXiv 2601.03723) lets ε follow the
# signal, on two levels:
#
# * **micro**: answers with a large advantage get a wider region;
# * **macro**: groups whose rewards are mixed get a wider region than groups that are almost always right or wrong.
#
# > **Whose formula is this?** The idea and its two levels are the paper's. Its equations were not available to this
# > project, so the formula below is **our reconstruction**, with our numbers. A different reading may behave
# > differently; two others are in the package (`etr_implicit`, `etr_proportional`).
#
# > ε = 0.2 · (1 + ½·tanh(|A| − 1)) · (1 + ½·(4v − ½)), kept between 0.05 and 0.5
#
# v is the variance of the group's rewards: p(1 − p) for rewards 0 and 1 with success rate p. The first bracket is
# *micro*, the second *macro*. The map shows ε wherever you may look it up. But a group of 0/1 rewards cannot be
# anywhere: its z-scored advantages lie on the two dashed curves, +√((1 − p)/p) for right answers and −√(p/(1 − p)) for
# wrong ones.


# %%
def half_width(objective: etr.Objective, advantage: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """ε of the upper bound for answers with these advantages in groups with these success rates, `[responses]`."""
    batch = one_token(torch.ones_like(advantage), advantage, p)
    return (etr.policy_loss(objective, batch).region.high - 1).expand(len(advantage), 1).squeeze(-1)


rates = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
sizes = torch.linspace(-4.0, 4.0, 161, dtype=torch.float64)
points = torch.cartesian_prod(sizes, rates)
landscape = half_width(elastic, points[:, 0], points[:, 1]).reshape(len(sizes), len(rates))
region_landscape(landscape, sizes, rates, title="ETR: half-width ε by advantage and success rate")

# %% [markdown]
# Follow the dashed curves and you see ETR as it really acts:


# %% tags=["hide-input"]
@styled
def width_picture(p: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor):
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    color = objective_color("etr")
    axes.plot(p, torch.full_like(p, 0.2), color=objective_color("grpo"))
    axes.plot(p, right, color=color)
    axes.plot(p, wrong, color=color, ls=(0, (4, 2)))
    axes.plot([1 / 16, 1 / 16, 1 / 2], [0.2597, 0.1185, 0.25], "o", color=color, ms=6)
    axes.set(title="The same region, where it is used", xlabel="success rate of the group, p", ylabel="half-width ε")
    axes.set(xlim=(0, 1), ylim=(0, 0.32))
    names = (("ETR, right", right, color), ("ETR, wrong", wrong, color), ("GRPO", 0 * p + 0.2, objective_color("grpo")))
    note = "Solid: right answers; dashed: wrong ones. Dots: the values computed below."
    return finish(figure, note, {axes: [End(float(p[-1]), float(y[-1]), name, shade) for name, y, shade in names]})


p = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
right, wrong = ((1 - p) / p).sqrt(), -(p / (1 - p)).sqrt()
width_picture(p, half_width(elastic, right, p), half_width(elastic, wrong, p))

# %% [markdown]
# Now the same in numbers, taken apart. At p = ½ all |A| are 1, micro is neutral, macro is at its widest. At p = 1/16
# the one right answer has a large advantage (micro: wider), but the group is nearly all wrong (macro: tighter).
# **For rare successes the two levels pull in opposite directions**, and the right answer ends near where it would be
# at p = ½. What changes is the wrong answers: they are held back.

# %%
known = {}
print("p        answer  |A|     micro   macro   ε")
for chance in (1 / 2, 1 / 16):
    at = torch.tensor([chance], dtype=torch.float64)
    for answer, a in (("right", ((1 - at) / at).sqrt()), ("wrong", -(at / (1 - at)).sqrt())):
        micro = half_width(etr.get("etr", macro=0.0), a, at) / 0.2
        macro = half_width(etr.get("etr", micro=0.0), a, at) / 0.2
        eps = half_width(elastic, a, at)
        known[chance, answer] = (micro.item(), macro.item(), eps.item())
        numbers = "   ".join(f"{x:.3f}" for x in (a.abs().item(), *known[chance, answer]))
        print(f"{chance:.4f}   {answer}   {numbers}")

# %% [markdown]
# ## 6. Does it help?
#
# An honest comparison needs controls. If ETR does better than GRPO, it may be because some answers get more room than
# others (*allocation*), or merely because the room is larger (*width*). So we train four recipes on the same seeds:
#
# * `etr` and `grpo` (ε = 0.2);
# * `grpo_wide`: one ε for all answers of a batch, equal to the **mean** that ETR would have used. Same width, no
#   allocation;
# * `grpo ε=0.3`: GRPO with its knob simply turned up.
#
# Four updates per batch. The learning score averages the expected reward over training, 0 for guessing and 1 for the
# optimum. Intervals are 95 % bootstrap intervals over the seeds.

# %%
wider = dataclasses.replace(etr.load_recipe("grpo", {"eps_low": 0.3, "eps_high": 0.3}), name="grpo ε=0.3")
recipes = [etr.load_recipe("etr"), etr.load_recipe("grpo"), etr.load_recipe("grpo_wide"), wider]
env = "bandit-spread"
result = compare(recipes, [env], ToyConfig(iterations=ITERATIONS, seeds=SEEDS))
for measure in ("learning score", "final score"):
    for row in result.rows:
        if row["metric"] == measure:
            print(f"{measure:14} {row['recipe']:10} {row['iqm']:.4f} [{row['low']:.4f}, {row['high']:.4f}]")
better = {row["against"]: row for row in result.improvement if row["metric"] == "learning score"}
print(f"\nChance that a random seed of etr beats one of the other (learning score, n = {SEEDS}, ½ = no difference):")
for name, row in better.items():
    print(f"  etr > {name:10} {row['probability']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")

# %% [markdown]
# All recipes learn almost the same; their curves would lie on top of each other. But every seed used the same random
# numbers in all four, so we may subtract GRPO's curve seed by seed, which removes most of the noise.

# %%
histories = result.histories[env]
reward = {name: history.curves["reward"] for name, history in histories.items()}
difference = {name: values - reward["grpo"] for name, values in reward.items() if name != "grpo"}
seed_bands(difference, histories["etr"].steps, "expected reward − GRPO's", "Difference from GRPO on the same seed")

# %% [markdown]
# And this is where the room went. Note the control: on this bandit ETR is on average **not** wider than GRPO, so
# `grpo_wide` is a little tighter than `grpo`, whatever its name says.

# %%
widths = {name: histories[name].width for name in ("etr", "grpo", "grpo_wide")}
wide_eps = widths["grpo_wide"].nanmean().item() / 2
print(f"mean ε of grpo_wide: {wide_eps:.3f}; of grpo: {grpo.eps_high}")
width_by_success_rate({name: (EDGES, width) for name, width in widths.items()})

# %% [markdown]
# Learning faster has a price: entropy, the room for later surprises. So ask again, at equal price. When a policy has
# come down to 1.5 nats, which reward has it bought? All recipes run along nearly the same curve, some faster than
# others, and at equal entropy ETR is not ahead.


# %%
def mean_interval(values: torch.Tensor) -> stats.Interval:
    """Interquartile mean over seeds `[seeds]` with its 95 % interval."""
    rng = torch.Generator().manual_seed(0)
    return stats.stratified_bootstrap(values[None], lambda s: stats.iqm(s.flatten(-2)), rng)


def reward_at(history, nats: float) -> torch.Tensor:
    """Expected reward of each seed at the last batch where its entropy is still above `nats`, interpolated to it."""
    entropy, reward = history.curves["entropy"], history.curves["reward"]
    last = (entropy > nats).sum(-1, keepdim=True) - 1
    (e0, e1), (r0, r1) = ([x.gather(-1, last + i) for i in (0, 1)] for x in (entropy, reward))
    return (r0 + (r1 - r0) * (e0 - nats) / (e0 - e1)).squeeze(-1)


price = mean_interval(reward_at(histories["etr"], 1.5) - reward_at(histories["grpo"], 1.5))
print(f"reward at 1.5 nats, etr − grpo: {price.estimate:+.4f} [{price.low:+.4f}, {price.high:+.4f}]")
entropy_reward_phase({name: history.curves for name, history in histories.items()})

# %% [markdown]
# Last, the same comparison with two updates per batch instead of four. Almost nothing is clipped then, and by
# section 4 a region that does not clip cannot matter.

# %%
twice = [etr.load_recipe(name, {"optimizer.updates": 2}) for name in ("etr", "grpo")]
gentle = compare(twice, [env], ToyConfig(iterations=ITERATIONS, seeds=SEEDS // 2))
equal = next(row for row in gentle.improvement if row["metric"] == "learning score")
clip_two = gentle.histories[env]["grpo"].curves["region/zero_grad_frac"].nanmean().item()
clip_four = histories["grpo"].curves["region/zero_grad_frac"].nanmean().item()
print(f"zero-gradient share of grpo at the last update: K = 4 {clip_four:.3f}, K = 2 {clip_two:.4f}")
print(f"K = 2: etr > grpo {equal['probability']:.3f} [{equal['low']:.3f}, {equal['high']:.3f}], n = {SEEDS // 2}")

# %% [markdown]
# **What these numbers support.**
#
# * At equal mean width ETR learns a little faster than a fixed range (against `grpo_wide`), and also than GRPO at its
#   usual 0.2. The effect is small, a few thousandths of the score; a handful of seeds would not have shown it.
# * GRPO with ε = 0.3 learns **faster still**. So on this bandit nothing speaks for ETR over a GRPO whose one knob has
#   been tuned.
# * At equal entropy ETR has not bought more reward than GRPO. The gain is speed along the same curve.
# * With two updates per batch there is no difference to be found.
#
# **What they do not support.** Anything about language models, other learning rates, other environments, or the paper's
# own formula. A bandit answers in one token and its policy is a table.

# %% [markdown]
# ## Why people are confused
#
# * **"Clip" sounds like a wall.** It is a mask on the gradient. A ratio can end far outside the region: Adam's momentum
#   and the other tokens keep moving it.
# * **A clip fraction of 0 is no sign of health or of failure.** With K = 1 it is 0 forever. Look at it by the number of
#   the update.
# * **|r − 1| > ε and zero gradient are different counts**, and programs log either under the same name.
# * **"Elastic" sounds like "wider".** It is an allocation: for rare successes the region of wrong answers shrinks.
# * **One comparison proves little.** Without the control one would credit the allocation with what the width did, and
#   without `grpo ε=0.3` one would think that the allocation was needed.

# %% [markdown]
# ## Exercises
#
# ### 1. Predict the picture
#
# An easy prompt: 15 of 16 answers are right. Sketch ε for right and wrong answers before you run the cell. Then explain
# the result with one sentence about symmetry.

# %%
guess_right, guess_wrong = 0.0, 0.0
easy = torch.tensor([15 / 16], dtype=torch.float64)
easy_right = half_width(elastic, ((1 - easy) / easy).sqrt(), easy).item()
easy_wrong = half_width(elastic, -(easy / (1 - easy)).sqrt(), easy).item()
print(f"you: right {guess_right}, wrong {guess_wrong}; computed: right {easy_right:.2f}, wrong {easy_wrong:.2f}")

# %% [markdown]
# ### 2. Fill the hole
#
# Write ETR's ε as a function of the success rate alone. (`right` says which of the two dashed curves you are on.)


# %%
def width_by_hand(p: float, right: bool) -> float:
    """ε of ETR with its default settings."""
    return float("nan")  # ← your lines


def is_right(width) -> bool:
    """Compare with the package for every group of 16 that is not dead."""
    for right_answers in range(1, 16):
        at = torch.tensor([right_answers / 16], dtype=torch.float64)
        for right, a in ((True, ((1 - at) / at).sqrt()), (False, -(at / (1 - at)).sqrt())):
            if not abs(width(right_answers / 16, right) - half_width(elastic, a, at).item()) < 1e-9:
                return False
    return True


print("exercise 2:", "right!" if is_right(width_by_hand) else "not yet")

# %% [markdown]
# ### 3. Hunt the planted bug
#
# Three versions of the clip. All have the same value at r = 1, the same gradient at the first update, and all train
# without an error. Two are wrong. Find them by plotting or printing c over r, for both signs of A, and say what each
# does to a token that has moved too far, and to one that has moved the wrong way.


# %%
def clip_a(r: torch.Tensor, a: float) -> torch.Tensor:
    return torch.maximum(r * a, r.clamp(0.8, 1.2) * a)


def clip_b(r: torch.Tensor, a: float) -> torch.Tensor:
    return torch.minimum(r * a, r.clamp(0.8, 1.2) * a)


def clip_c(r: torch.Tensor, a: float) -> torch.Tensor:
    return r.clamp(0.8, 1.2) * a


def coefficient(clip, ratios: list[float], a: float) -> list[float]:
    """c at each ratio: the derivative by log r."""
    log_r = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    (c,) = torch.autograd.grad(clip(log_r.exp(), a).sum(), log_r)
    return [round(x, 3) + 0.0 for x in c.tolist()]


at_one = {name: coefficient(f, [1.0], 1.0) for name, f in {"a": clip_a, "b": clip_b, "c": clip_c}.items()}
print("c at r = 1, A = +1:", at_one)

# %% [markdown]
# **Solutions** are in the next cell.

# %% tags=["hide-cell"]
# 1: mirrored: 0.12 for right answers, 0.26 for wrong ones. p -> 1 − p swaps the roles of right and wrong.
# 3: clip_b is right. clip_c also stops tokens that moved the wrong way: they can never come back. clip_a is the
#    opposite of pessimistic: it keeps pushing tokens that moved too far and stops those that need to come back.


def solution(p: float, right: bool) -> float:
    size = ((1 - p) / p) ** 0.5 if right else (p / (1 - p)) ** 0.5
    micro = 1 + 0.5 * torch.tanh(torch.tensor(size - 1, dtype=torch.float64)).item()
    macro = 1 + 0.5 * (4 * p * (1 - p) - 0.5)
    return min(max(0.2 * micro * macro, 0.05), 0.5)


seen = {}
for name, clip in {"a": clip_a, "b": clip_b, "c": clip_c}.items():
    seen[name] = [coefficient(clip, [0.5, 1.5], a) for a in (1.0, -1.0)]
    print(f"clip_{name}: c at r = 0.5 and 1.5: A = +1 {seen[name][0]}, A = −1 {seen[name][1]}")

# %% [markdown]
# ## What we found
#
# Every claim of this text, as a check that fails when it stops being true.

# %%
# Clipping is a mask: dead on one side, alive on the other.
assert [round(c, 6) for c in four["coef_pos"].tolist()] == [0.0, 0.5]
assert [round(c, 6) for c in four["coef_neg"].tolist()] == [-1.5, 0.0]

# The two counts differ: the naive one contains tokens that still have a gradient.
assert naive_share > 0.5 and 0.25 < zero_share < 0.4
assert (counts["|r − 1| > ε"] >= counts["zero gradient"] - 1e-6).all()

# The clip fraction is 0 at the first update and grows with each further one.
growth = counts["zero gradient"].diff(dim=-1)
first_steps = [mean_interval(g) for g in growth.T[:3]]
print("growth of the zero-gradient share with updates 2, 3, 4:")
print(*(f"  {g.estimate:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in first_steps), sep="\n")
assert counts["zero gradient"][:, 0].max() == 0
assert all(g.low >= 0 for g in first_steps) and first_steps[-1].low > 0
assert same  # K = 1: the region never acts

# ETR's known values, and the two levels pulling against each other.
assert abs(known[1 / 2, "right"][2] - 0.25) < 1e-9 and abs(known[1 / 2, "wrong"][2] - 0.25) < 1e-9
assert round(known[1 / 16, "right"][2], 2) == 0.26 and round(known[1 / 16, "wrong"][2], 2) == 0.12
assert known[1 / 16, "right"][0] > 1 > known[1 / 16, "right"][1]

# The comparison: ahead of the fixed range at equal mean width and of GRPO at 0.2 ...
assert better["grpo_wide"]["low"] > 0.5
assert better["grpo"]["low"] > 0.5
# ... by little ...
iqm = {row["recipe"]: row["iqm"] for row in result.rows if row["metric"] == "learning score"}
assert 0 < iqm["etr"] - iqm["grpo"] < 0.02
# ... and behind a wider GRPO (too few seeds in FAST mode for the whole interval).
assert better["grpo ε=0.3"]["probability"] < 0.5 and (FAST or better["grpo ε=0.3"]["high"] < 0.5)
# At equal entropy it has not bought more reward than GRPO.
assert price.high < 0.001
# The control is as wide as ETR on average, which here is not wider than GRPO.
assert 0.17 < wide_eps < grpo.eps_high
# Without clipping no difference.
assert clip_two < 0.02 < clip_four
assert equal["low"] < 0.5 < equal["high"] and equal["high"] - equal["low"] < 0.35

# The exercises can be solved, and not by doing nothing.
assert is_right(solution) and not is_right(width_by_hand)
assert round(easy_right, 2) == 0.12 and round(easy_wrong, 2) == 0.26
assert at_one["a"] == at_one["b"] == at_one["c"] == [1.0]
assert seen["b"] == [[0.5, 0.0], [0.0, -1.5]]
assert seen["a"] == [[0.0, 1.5], [-0.5, 0.0]] and seen["c"] == [[0.0, 0.0], [0.0, 0.0]]
print("All conclusions hold.")
