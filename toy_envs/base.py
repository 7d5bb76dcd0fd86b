"""The Gymnasium side of an exact model: one episode is one prompt, answered token by token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from toy_envs.checks import unknown
from toy_envs.model import ExactModel

Obs = TypeVar("Obs")
OPTIONS = ("prompt", "prefix")  # of `reset`


class ExactEnv(gymnasium.Env[Obs, np.int64], ABC, Generic[Obs]):
    """
    ## Description
    An episode draws a prompt, takes T tokens and rewards the complete sequence. `env.model` is the exact
    model, from which expected reward, its gradient, entropy and KL follow without sampling. Subclasses give
    the observation, a `QUESTION` that they are there to answer, and `PRESETS`, from easy to hard.

    ## Action Space
    `Discrete(V)`: the next token (arm).

    ## Starting State
    A prompt drawn uniformly and nothing written. `reset(options={"prompt": index, "prefix": [tokens]})`
    chooses the prompt and starts behind given tokens: a hint, or a second try from a branching point.

    ## Reward
    0 before the last token, then the verdict: 1 with its probability, else 0 (a weighted mean of several such
    draws where the reward has components).

    ## Episode End
    Terminates after T tokens; never truncates.

    ## Information
    `prompt`: its index; `state`: row of the policy's logits that chooses the next token (absent at the end).
    """

    QUESTION: ClassVar[str] = ""
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset name -> constructor arguments
    SWEEP: ClassVar[tuple[str, ...]] = ()  # names of the presets, from easy to hard
    TYPICAL: ClassVar[str] = ""  # preset that the family's name alone stands for: the middle, unless the class says

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.SWEEP = tuple(cls.PRESETS)
        if "TYPICAL" not in cls.__dict__ and cls.SWEEP:
            cls.TYPICAL = cls.SWEEP[len(cls.SWEEP) // 2]

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
        """Expected success on the scale 0 (uniform policy or worse) to 1 (optimum)."""
        return self.model.score(value).item()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start an episode; raises ValueError for other options, and a prompt or prefix that does not exist."""
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name not in OPTIONS:
                raise ValueError(unknown("reset option", str(name), OPTIONS))
        prompt = options.get("prompt")
        self._prompt = int(self.np_random.integers(self.model.prompts) if prompt is None else prompt)
        if not 0 <= self._prompt < self.model.prompts:
            raise ValueError(
                f"prompt {prompt} does not exist; give options={{'prompt': 0 to {self.model.prompts - 1}}}"
            )
        self._tokens = self._checked_prefix(options.get("prefix", ()))
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

    def _checked_prefix(self, prefix: Sequence[int]) -> list[int]:
        try:
            tokens = [int(token) for token in prefix]
        except (TypeError, ValueError):
            raise ValueError(f"prefix is {prefix!r}; give a list of tokens, for example [0]") from None
        if len(tokens) >= self.model.horizon or any(not 0 <= token < self.model.vocab_size for token in tokens):
            raise ValueError(
                f"prefix {tokens} cannot be continued; give at most {self.model.horizon - 1} tokens "
                f"from 0 to {self.model.vocab_size - 1}"
            )
        return tokens

    def _number(self) -> int:
        number = 0
        for token in self._tokens:
            number = number * self.model.vocab_size + token
        return number

    def _verify(self) -> float:
        model, number = self.model, self._number()
        table = model.verdict.unsqueeze(1) if model.components is None else model.components
        won = self.np_random.random(model.noise_size) < table[self._prompt, :, number].numpy()
        weights = np.array(model.scales or (1.0,))
        return float(won @ weights / weights.sum())

    def _info(self) -> dict[str, Any]:
        if not self._running:
            return {"prompt": self._prompt}
        return {"prompt": self._prompt, "state": self.model.offset(len(self._tokens)) + self._number()}


class SequenceEnv(ExactEnv[NDArray[np.int64]]):
    """An environment whose agent sees the prompt and the tokens so far.

    Observation: `MultiDiscrete`: the prompt's tokens (its index, where prompts are not text), then T places for
    the answer; places not yet written hold V.
    """

    def __init__(self, model: ExactModel) -> None:
        text = model.prompt_tokens
        prompt = [model.prompts] if text is None else [int(text.max()) + 1] * text.shape[1]
        super().__init__(model, gymnasium.spaces.MultiDiscrete(prompt + [model.vocab_size + 1] * model.horizon))

    def _observation(self) -> NDArray[np.int64]:
        text = self.model.prompt_tokens
        prompt = [self._prompt] if text is None else text[self._prompt].tolist()
        unwritten = [self.model.vocab_size] * (self.model.horizon - len(self._tokens))
        return np.array([*prompt, *self._tokens, *unwritten], dtype=np.int64)
