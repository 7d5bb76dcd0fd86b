"""The toy trainer beside the same algorithm in JAX and beside a Gymnasium step loop, in one run.

One run-iteration = 16 prompts x 10 arms, groups of 16, 4 updates of ETR with Adam, without measurements.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from etr.batch import Batch
from etr.bench import median_ratio, paired, timed
from etr.bench.jax_peer import peer
from etr.groups import group_stats
from etr.loss import policy_loss
from etr.recipe import Recipe, load_recipe
from etr.toy.answers import taken_log_probs
from etr.toy.train import ToyConfig, train
from etr.toy.update import LEARNING_RATES
from toy_envs import make_model
from toy_envs.bandit import Bandit, spread
from toy_envs.model import ExactModel

GROUP = 16
OURS: dict[str, dict[str, Any]] = {
    "etr": {},
    "etr, compiled": {"compile": True},
    "etr, compiled, float32": {"compile": True, "dtype": "float32"},
}
LOOP = "gymnasium step loop"
PEERS = {"jax, random.categorical": False, "jax, inverse sampling": True}


def bench_toy(runs: int = 512, iterations: int = 20, repeats: int = 5) -> list[dict[str, Any]]:
    """A row for each candidate: run-iterations per second once it runs, the same as a multiple of each peer's (median
    over alternating turns), and how many seconds longer its first call took (compilation)."""
    recipe, model = load_recipe("etr"), make_model("bandit-spread")
    config = ToyConfig(iterations=iterations, seeds=runs, group_size=GROUP, metrics_every=iterations)
    work = runs * iterations
    candidates: dict[str, Callable[[], float]] = {
        name: partial(_steady, recipe, model, replace(config, **fields)) for name, fields in OURS.items()
    }
    peers = {name: peer(model.success, runs, iterations, invert) for name, invert in PEERS.items()}
    candidates |= {name: timed(run, work) for name, run in peers.items() if run is not None}
    candidates[LOOP] = timed(lambda: step_loop(recipe, Bandit.from_preset("spread"), 2), 2)
    first = {name: timed(candidate)() for name, candidate in candidates.items()}
    seconds = paired(candidates, repeats, warm=False)
    others = [name for name in (*PEERS, LOOP) if name in seconds]
    return [
        {
            "what": name,
            "run-iterations/s": 1 / statistics.median(times),
            "first call, extra s": first[name] - (2 if name == LOOP else work) * statistics.median(times),
            **{f"x {other}": median_ratio(seconds[other], times) for other in others},
        }
        for name, times in seconds.items()
    ]


def _steady(recipe: Recipe, model: ExactModel, config: ToyConfig) -> float:
    """Seconds per run-iteration after the first iteration, in which a compiled run compiles."""
    marks: list[float] = []
    train(recipe, model, config, lambda step: marks.append(time.perf_counter()))
    return (marks[-1] - marks[0]) / (config.seeds * (config.iterations - 1))


def bench_growth(iterations: int = 10, repeats: int = 3) -> list[dict[str, Any]]:
    """Milliseconds of an iteration when runs, prompts or group size double: linear means a ratio of 2."""
    base = {"runs": 128, "prompts": 16, "group": 16}
    rows = []
    for what in base:
        sizes = {factor: base | {what: base[what] * factor} for factor in (1, 2, 4)}
        seconds = paired({str(k): timed(_growth_run(size, iterations)) for k, size in sizes.items()}, repeats)
        milliseconds = {f"x{k}": 1000 * statistics.median(times) / iterations for k, times in seconds.items()}
        ratios = {f"x{b}/x{a}": median_ratio(seconds[b], seconds[a]) for a, b in (("1", "2"), ("2", "4"))}
        rows.append({"doubled": what, **milliseconds, **ratios})
    return rows


def bench_memory(runs: int = 64, few: int = 100, many: int = 1000) -> list[dict[str, Any]]:
    """Peak memory of a process that trains for few and for many iterations: it must not grow."""
    code = (
        "import resource, torch; torch.set_num_threads(1); from etr.toy.train import ToyConfig, train; "
        "from etr.recipe import load_recipe; from toy_envs import make_model; "
        "train(load_recipe('etr'), make_model('bandit-spread'), ToyConfig({n}, seeds={runs})); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    rows = []
    for n in (few, many):
        done = subprocess.run([sys.executable, "-c", code.format(n=n, runs=runs)], capture_output=True, check=True)
        rows.append({"iterations": n, "peak MiB": float(done.stdout)})
    return rows


def _growth_run(size: Mapping[str, int], iterations: int) -> Callable[[], object]:
    model = Bandit(spread(prompts=size["prompts"])).model
    config = ToyConfig(iterations, size["group"], size["runs"], metrics_every=iterations)
    return lambda: train(load_recipe("etr"), model, config)


def step_loop(recipe: Recipe, env: Bandit, iterations: int) -> torch.Tensor:
    """One run, episode by episode, as a textbook agent does; returns its logits `[1, prompts, 1, arms]`."""
    prompts, arms = env.model.prompts, env.model.vocab_size
    logits = torch.zeros(1, prompts, 1, arms, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATES["adam"])
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
