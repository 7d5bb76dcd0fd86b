"""Names of all environments: `<family>-<preset>`, and a family's name alone for its typical preset."""

from __future__ import annotations

from typing import Any

import gymnasium

from toy_envs.bandit import Bandit
from toy_envs.base import ExactEnv
from toy_envs.checks import unknown
from toy_envs.copy_reverse import CopyReverse
from toy_envs.key_chain import KeyChain
from toy_envs.mod_arithmetic import ModArithmetic
from toy_envs.model import ExactModel
from toy_envs.multi_mode import MultiMode
from toy_envs.multi_reward import MultiReward
from toy_envs.noisy import NoisyVerifier
from toy_envs.random_reward import RandomReward
from toy_envs.token_tree import TokenTree
from toy_envs.two_stage import TwoStage

FAMILIES: dict[str, type[ExactEnv[Any]]] = {
    "bandit": Bandit,
    "noisy": NoisyVerifier,
    "multi-mode": MultiMode,
    "key-chain": KeyChain,
    "tree": TokenTree,
    "copy": CopyReverse,
    "mod": ModArithmetic,
    "two-stage": TwoStage,
    "multi-reward": MultiReward,
    "random": RandomReward,
}
_ENVS = {f"{family}-{preset}": (family, preset) for family, env in FAMILIES.items() for preset in env.SWEEP}


def list_envs(family: str | None = None) -> list[str]:
    """Names of all environments, sorted; of one family, from easy to hard. Raises ValueError naming the nearest.

    >>> list_envs("tree")
    ['tree-easy', 'tree-medium', 'tree-hard']
    """
    if family is None:
        return sorted(_ENVS)
    if family not in FAMILIES:
        raise ValueError(unknown("family", family, FAMILIES))
    return [f"{family}-{preset}" for preset in FAMILIES[family].SWEEP]


def resolve(name: str) -> tuple[str, str]:
    """Family and preset of a name; a family alone means its `TYPICAL` one. Raises ValueError naming the nearest.

    >>> resolve("bandit"), resolve("tree-easy")
    (('bandit', 'spread'), ('tree', 'easy'))
    """
    if name in FAMILIES:
        return name, FAMILIES[name].TYPICAL
    if name not in _ENVS:
        raise ValueError(unknown("environment", name, [*_ENVS, *FAMILIES]))
    return _ENVS[name]


def make_env(name: str) -> ExactEnv[Any]:
    """The Gymnasium environment of that name, without wrappers; raises ValueError naming the nearest one."""
    family, preset = resolve(name)
    return FAMILIES[family].from_preset(preset)


def make_model(name: str) -> ExactModel:
    """The exact model of the environment of that name; raises ValueError naming the nearest one."""
    return make_env(name).model


def register_all() -> None:
    """Make every preset known to Gymnasium as `toy_envs/<Class>-<preset>-v0`."""
    for family, preset in _ENVS.values():
        env = FAMILIES[family]
        gymnasium.register(
            id=f"toy_envs/{env.__name__}-{preset}-v0",
            entry_point=f"{env.__module__}:{env.__name__}",
            kwargs=dict(env.PRESETS[preset]),
        )
