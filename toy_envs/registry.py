"""Names of all environments: `<family>-<preset>`, and a family's name alone for its typical preset.

Other packages `register` theirs; `add_source` says who is to import them when a name is looked up that is not here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

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
E = TypeVar("E", bound=type[ExactEnv[Any]])
_SOURCES: list[Callable[[], object]] = []


def register(family: str) -> Callable[[E], E]:
    """Class decorator: make an environment known as `family`, its presets as `<family>-<preset>`, Gymnasium included.

    Raises ValueError for a name that is taken, and for a class that is no environment: made from `ExactEnv`, nothing
    abstract left, with a `QUESTION` and `PRESETS` of which the typical one can be made.
    """

    def add(cls: E) -> E:
        _check_contract(family, cls)
        FAMILIES[family] = cls
        _register_with_gymnasium(cls)
        return cls

    return add


def add_source(load: Callable[[], object]) -> None:
    """Call `load` before a name is called unknown and before all are listed; what it imports may `register`."""
    if load not in _SOURCES:
        _SOURCES.append(load)


def _check_contract(family: str, cls: Any) -> None:
    who = f"environment '{family}'"
    if not (isinstance(cls, type) and issubclass(cls, ExactEnv)):
        raise ValueError(f"{who} is {cls!r}; register a class made from toy_envs.ExactEnv")
    if inspect.isabstract(cls):
        raise ValueError(f"{who} lacks {', '.join(sorted(cls.__abstractmethods__))}; define it in {cls.__qualname__}")
    if not (cls.QUESTION and cls.PRESETS):
        raise ValueError(f"{who} needs a QUESTION and PRESETS; give {cls.__qualname__} both")
    known = FAMILIES.get(family)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{who} is already registered by {known.__module__}.{known.__qualname__}; choose another name")
    others = {name: other for name, (other, _) in _envs().items()} | {name: name for name in FAMILIES}
    for name in (family, *(f"{family}-{preset}" for preset in cls.SWEEP)):
        if others.get(name, family) != family:
            other = FAMILIES[others[name]]
            raise ValueError(f"{who}: '{name}' is a name of {other.__module__}.{other.__qualname__}; choose another")
    if not isinstance(getattr(cls.from_preset(cls.TYPICAL), "model", None), ExactModel):
        raise ValueError(f"{who} has no exact model; call super().__init__(model, ...) in {cls.__qualname__}")


def _envs() -> dict[str, tuple[str, str]]:
    """Name of every preset -> family and preset."""
    return {f"{family}-{preset}": (family, preset) for family, env in FAMILIES.items() for preset in env.SWEEP}


def _ask_sources() -> None:
    for load in _SOURCES:
        load()


def list_envs(family: str | None = None) -> list[str]:
    """Names of all environments, sorted; of one family, from easy to hard. Raises ValueError naming the nearest.

    >>> list_envs("tree")
    ['tree-easy', 'tree-medium', 'tree-hard']
    """
    if family not in FAMILIES:
        _ask_sources()
    if family is None:
        return sorted(_envs())
    if family not in FAMILIES:
        raise ValueError(unknown("family", family, FAMILIES))
    return [f"{family}-{preset}" for preset in FAMILIES[family].SWEEP]


def resolve(name: str) -> tuple[str, str]:
    """Family and preset of a name; a family alone means its `TYPICAL` one. Raises ValueError naming the nearest.

    >>> resolve("bandit"), resolve("tree-easy")
    (('bandit', 'spread'), ('tree', 'easy'))
    """
    if name not in FAMILIES and name not in _envs():
        _ask_sources()
    if name in FAMILIES:
        return name, FAMILIES[name].TYPICAL
    envs = _envs()
    if name not in envs:
        raise ValueError(unknown("environment", name, [*envs, *FAMILIES]))
    return envs[name]


def make_env(name: str) -> ExactEnv[Any]:
    """The Gymnasium environment of that name, without wrappers; raises ValueError naming the nearest one."""
    family, preset = resolve(name)
    return FAMILIES[family].from_preset(preset)


def make_model(name: str) -> ExactModel:
    """The exact model of the environment of that name; raises ValueError naming the nearest one."""
    return make_env(name).model


def register_all() -> None:
    """Make every preset known to Gymnasium as `toy_envs/<Class>-<preset>-v0`."""
    for env in FAMILIES.values():
        _register_with_gymnasium(env)


def _register_with_gymnasium(env: type[ExactEnv[Any]]) -> None:
    """As `<package>/<Class>-<preset>-v0`, so that a class of another package takes no name of ours."""
    for preset in env.SWEEP:
        gymnasium.register(
            id=f"{env.__module__.partition('.')[0]}/{env.__name__}-{preset}-v0",
            entry_point=f"{env.__module__}:{env.__name__}",
            kwargs=dict(env.PRESETS[preset]),
        )
