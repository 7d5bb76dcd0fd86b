"""The toy trainer against a plain Gymnasium step loop that does the same work.

One run-iteration = 16 prompts x 10 arms, groups of 16, 4 updates, without measurements. The loop steps through the
256 episodes one by one, as a textbook agent does, and then takes the same updates with the same loss.
"""

from __future__ import annotations

import statistics

import torch

from etr.batch import Batch
from etr.bench import median_ratio, paired
from etr.groups import group_stats
from etr.loss import policy_loss
from etr.recipe import Recipe, load_recipe
from etr.toy.train import LEARNING_RATE, ToyConfig, taken_log_probs, train
from toy_envs import make_model
from toy_envs.bandit import Bandit

GROUP = 16


def bench_toy(recipe: str = "etr", runs: int = 64, iterations: int = 20, repeats: int = 5) -> dict[str, float]:
    """Run-iterations per second of both, and their ratio (median over alternating turns)."""
    loaded = load_recipe(recipe)
    model = make_model("bandit-spread")
    env = Bandit.from_preset("spread")
    config = ToyConfig(iterations=iterations, seeds=runs, group_size=GROUP, metrics_every=iterations)
    seconds = paired(
        {"vectorised": lambda: train(loaded, model, config), "loop": lambda: step_loop(loaded, env, 2)}, repeats
    )
    fast, slow = ([t / n for t in seconds[k]] for k, n in (("vectorised", runs * iterations), ("loop", 2)))
    return {
        "vectorised run-iterations/s": 1 / statistics.median(fast),
        "gymnasium loop run-iterations/s": 1 / statistics.median(slow),
        "speed-up": median_ratio(slow, fast),
        "runs": runs,
        "threads": torch.get_num_threads(),
    }


def step_loop(recipe: Recipe, env: Bandit, iterations: int) -> torch.Tensor:
    """One run, episode by episode; returns its logits `[1, prompts, 1, arms]`."""
    prompts, arms = env.model.prompts, env.model.vocab_size
    logits = torch.zeros(1, prompts, 1, arms, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    group_ids = torch.arange(prompts).repeat_interleave(GROUP)
    env.reset(seed=0)
    for _ in range(iterations):
        policy = torch.distributions.Categorical(logits=logits.detach()[0, :, 0])  # sampling has no gradient
        actions = policy.sample((GROUP,)).T  # [prompts, group]
        rewards = torch.zeros(prompts, GROUP)
        for prompt in range(prompts):
            for member in range(GROUP):
                env.reset(options={"prompt": prompt})
                rewards[prompt, member] = env.step(actions[prompt, member].numpy())[1]
        index = actions.reshape(1, prompts, GROUP, 1)
        old, rewards = taken_log_probs(logits.detach(), index), rewards.reshape(1, -1)  # the sampling policy is fixed
        for _ in range(recipe.optimizer.updates):
            batch = Batch(taken_log_probs(logits, index), old, torch.ones_like(old, dtype=torch.bool),
                          recipe.advantages(rewards, group_ids), group_stats(rewards, group_ids))  # fmt: skip
            optimizer.zero_grad()
            policy_loss(recipe.objective, batch).loss.sum().backward()
            optimizer.step()
    return logits.detach()  # the result is only read
