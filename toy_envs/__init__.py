"""Toy environments for RLVR objectives, with exact models; importing this registers them with Gymnasium.

>>> import gymnasium, toy_envs
>>> env = gymnasium.make("toy_envs/TokenTree-easy-v0")
>>> toy_envs.list_envs()[:3]
['bandit-deceptive', 'bandit-fixed-gap', 'bandit-multi-optimum']
>>> toy_envs.make_model("bandit-spread").prompts
16
"""

from __future__ import annotations

from typing import Any

import gymnasium

from toy_envs.bandit import Bandit
from toy_envs.base import ExactEnv, unknown
from toy_envs.model import ExactModel
from toy_envs.token_tree import TokenTree, draw_accepting

__all__ = ["Bandit", "ExactEnv", "ExactModel", "TokenTree", "draw_accepting", "list_envs", "make_model"]

_ENVS: dict[str, tuple[type[ExactEnv[Any]], str]] = {
    f"{prefix}-{preset}": (env, preset)
    for prefix, env in (("bandit", Bandit), ("tree", TokenTree))
    for preset in env.PRESETS
}

for _env, _preset in _ENVS.values():
    gymnasium.register(
        id=f"toy_envs/{_env.__name__}-{_preset}-v0",
        entry_point=f"{_env.__module__}:{_env.__name__}",
        kwargs=dict(_env.PRESETS[_preset]),
    )


def list_envs() -> list[str]:
    """Short names of all registered environments, sorted."""
    return sorted(_ENVS)


def make_model(name: str) -> ExactModel:
    """The exact model of the environment with that short name; raises ValueError naming the nearest one."""
    if name not in _ENVS:
        raise ValueError(unknown("environment", name, _ENVS))
    env, preset = _ENVS[name]
    return env.from_preset(preset).model
