"""The Gymnasium side of an exact model: one episode is one prompt, answered token by token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Generic, Self, TypeVar

import gymnasium
import numpy as np

from toy_envs.model import ExactModel

Obs = TypeVar("Obs")


class ExactEnv(gymnasium.Env[Obs, np.int64], ABC, Generic[Obs]):
    """
    ## Description
    An episode draws a prompt, takes T tokens and rewards the complete sequence with 0 or 1. `env.model` is
    the exact model, from which expected reward, its gradient, entropy and KL follow without sampling.
    Subclasses give the observation.

    ## Action Space
    `Discrete(V)`: the next token (arm).

    ## Starting State
    A prompt drawn uniformly, or `reset(options={"prompt": index})`.

    ## Reward
    0 before the last token, then 1 with the sequence's success probability, else 0.

    ## Episode End
    Terminates after T tokens; never truncates.

    ## Information
    `prompt`: its index; `state`: row of the policy's logits that chooses the next token (absent at the end).
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset name -> constructor arguments

    def __init__(self, model: ExactModel, observation_space: gymnasium.Space[Obs]) -> None:
        self.model = model
        self.observation_space = observation_space
        self.action_space = gymnasium.spaces.Discrete(model.vocab_size)
        self._prompt = 0
        self._tokens: list[int] = []
        self._running = False

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """The environment of that preset; raises ValueError naming the nearest one."""
        if name not in cls.PRESETS:
            raise ValueError(unknown(f"{cls.__name__} preset", name, cls.PRESETS))
        return cls(**cls.PRESETS[name])

    @abstractmethod
    def _observation(self) -> Obs:
        """What the agent sees now."""

    def score(self, value: float) -> float:
        """Expected reward on the scale 0 (uniform policy or worse) to 1 (optimum)."""
        return self.model.score(value).item()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start an episode; raises ValueError for a prompt that does not exist."""
        super().reset(seed=seed)
        prompt = (options or {}).get("prompt")
        self._prompt = int(self.np_random.integers(self.model.prompts) if prompt is None else prompt)
        if not 0 <= self._prompt < self.model.prompts:
            raise ValueError(
                f"prompt {prompt} does not exist; give options={{'prompt': 0 to {self.model.prompts - 1}}}"
            )
        self._tokens = []
        self._running = True
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Append one token; raises ValueError outside an episode and for a token outside the vocabulary."""
        if not self._running:
            raise ValueError("no episode is running; call reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(
                f"token {action} is outside the vocabulary; give tokens from 0 to {self.model.vocab_size - 1}"
            )
        self._tokens.append(int(action))
        self._running = len(self._tokens) < self.model.horizon
        reward = 0.0 if self._running else self._verify()
        return self._observation(), reward, not self._running, False, self._info()

    def _number(self) -> int:
        number = 0
        for token in self._tokens:
            number = number * self.model.vocab_size + token
        return number

    def _verify(self) -> float:
        return float(self.np_random.random() < self.model.success[self._prompt, self._number()].item())

    def _info(self) -> dict[str, Any]:
        if not self._running:
            return {"prompt": self._prompt}
        return {"prompt": self._prompt, "state": self.model.offset(len(self._tokens)) + self._number()}


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown name, with the nearest valid one first."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}';{hint} Valid: {', '.join(names)}"
