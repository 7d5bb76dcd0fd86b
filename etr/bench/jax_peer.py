"""The peer: the toy algorithm written in JAX as its users would (jit, vmap over runs, scan over iterations).

Same sizes, same ETR loss, same Adam, float32, measurements left out. Two ways to draw an arm:
`jax.random.categorical`, what one would write first, and inverting the cumulative distribution, as this package does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

GROUP, UPDATES, RATE = 16, 4, 0.1


def peer(success: Tensor, runs: int, iterations: int, invert: bool) -> Callable[[], Any] | None:
    """A function that trains `runs` runs from the uniform policy; None if JAX is not installed. success: `[P, V]`."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    table = jnp.asarray(success.numpy(), dtype=jnp.float32)
    step = functools.partial(_iteration, table=table, invert=invert)

    def run(key: Any) -> Any:
        zeros = jnp.zeros_like(table)
        return jax.lax.scan(step, (zeros, zeros, zeros, 0.0, key), None, length=iterations)[0][0]

    train = jax.jit(jax.vmap(run))
    keys = jax.random.split(jax.random.PRNGKey(0), runs)
    return lambda: train(keys).block_until_ready()


def _iteration(carry: Any, _: Any, table: Any, invert: bool) -> tuple[Any, None]:
    """Sample a group per prompt, verify, z-score, and take the updates."""
    import jax
    import jax.numpy as jnp

    logits, first, second, steps, key = carry
    key, of_arms, of_rewards = jax.random.split(key, 3)
    shape = (table.shape[0], GROUP)
    if invert:
        cdf = jnp.cumsum(jax.nn.softmax(logits), -1)
        uniform = jax.random.uniform(of_arms, shape) * cdf[:, -1:]
        arms = (cdf[:, None, :-1] <= uniform[..., None]).sum(-1)
    else:
        arms = jax.random.categorical(of_arms, logits[:, None, :], shape=shape)
    chance = jnp.take_along_axis(table, arms, -1)
    rewards = (jax.random.uniform(of_rewards, shape) < chance).astype(jnp.float32)
    mean = rewards.mean(-1, keepdims=True)
    variance = mean * (1 - mean)
    advantages = jnp.where(variance > 0, (rewards - mean) / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    old = jnp.take_along_axis(jax.nn.log_softmax(logits), arms, -1)
    loss = functools.partial(_loss, arms=arms, old=old, advantages=advantages, variance=variance)

    def update(state: Any, _: Any) -> tuple[Any, None]:
        return _adam(state, jax.grad(loss)(state[0])), None

    state, _ = jax.lax.scan(update, (logits, first, second, steps), None, length=UPDATES)
    return (*state, key), None


def _loss(logits: Any, arms: Any, old: Any, advantages: Any, variance: Any) -> Any:
    """ETR's, with its default settings (`etr/objectives/etr.py`)."""
    import jax
    import jax.numpy as jnp

    ratio = jnp.exp(jnp.take_along_axis(jax.nn.log_softmax(logits), arms, -1) - old)
    scale = (1 + 0.5 * jnp.tanh(jnp.abs(advantages) - 1)) * (1 + 0.5 * (4 * variance - 0.5))
    eps = jnp.clip(0.2 * scale, 0.05, 0.5)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - eps, 1 + eps) * advantages).mean()


def _adam(state: Any, gradient: Any) -> Any:
    import jax.numpy as jnp

    logits, first, second, steps = state
    steps = steps + 1
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    step = RATE * (first / (1 - 0.9**steps)) / (jnp.sqrt(second / (1 - 0.999**steps)) + 1e-8)
    return logits - step, first, second, steps
