"""What is promoted to where: the recipe, our own settings of the run, and the size of the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from etr.errors import InputError, unknown
from etr.llm.config import TrainConfig
from etr.llm.optimizers import LEARNING_RATE, LEARNING_RATES
from etr.recipe import Recipe

HOSTS = ("llm", "verl", "trl")


@dataclass(frozen=True)
class Job:
    """A recipe on its way to a host. Raises InputError for numbers out of range.

    config: our own settings, whatever the host; nodes, gpus: machines, and GPUs of each (0: none, on a CPU);
    prompt_tokens: longest prompt that a host makes room for; host_settings: the host's own, as KEY: VALUE.
    """

    recipe: Recipe
    host: str
    config: TrainConfig
    nodes: int = 1
    gpus: int = 0
    prompt_tokens: int = 512
    host_settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.host not in HOSTS:
            raise InputError(unknown("host", self.host, HOSTS))
        self.config.check()
        for name, least in (("nodes", 1), ("gpus", 0), ("prompt_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")

    @property
    def processes(self) -> int:
        """Processes that train: one for each GPU, or one on a CPU."""
        return self.nodes * max(self.gpus, 1)

    @property
    def responses(self) -> int:
        """Answers in each rollout batch."""
        return self.config.prompts * self.config.group_size

    @property
    def lr(self) -> float:
        """The learning rate: the recipe's, or our own default for that model."""
        given = self.recipe.optimizer.lr
        return LEARNING_RATES.get(self.config.model, LEARNING_RATE) if given is None else given

    @property
    def model(self) -> str:
        """The model; a folder by its whole path, since a run starts in a folder of its own."""
        return whole_path(self.config.model)


def whole_path(text: str) -> str:
    """A path that exists here as a whole one, any other text as it is."""
    return str(Path(text).expanduser().resolve()) if text and Path(text).expanduser().exists() else text


def check_translated(job: Job, translated: frozenset[str]) -> None:
    """Raise InputError for a setting that was changed and that this host does not get from us."""
    for setting in dataclasses.fields(TrainConfig):
        default = setting.default_factory() if callable(setting.default_factory) else setting.default
        if setting.name not in translated and getattr(job.config, setting.name) != default:
            option = "--" + setting.name.replace("_", "-")
            raise InputError(
                f"{option} is not translated for {job.host}, and would be lost without a word; leave it out, and give "
                f"what {job.host} itself has for it by --host-set"
            )
