"""The policy loss's part of verl's actor configuration, with an objective's fields. Needs verl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verl.workers.config.actor import PolicyLossConfig

from etr.adapters.recovery import Recovery, recovery
from etr.adapters.verl.checks import check
from etr.adapters.verl.installed import require
from etr.adapters.verl_names import LOSS, PREFIX, estimator, named
from etr.errors import InputError
from etr.objective import Objective


@dataclass
class ETRPolicyLossConfig(PolicyLossConfig):  # type: ignore[misc]
    """verl's settings of the policy loss, for a loss_mode `etr/<objective>`.

    fields: of the objective; host: settings of the run around it, by interpolation (`etr.adapters.verl_settings.HOST`);
    binary_rewards: all rewards are 0 or 1; columns: the trainer of `etr.adapters.verl.trainer` carries the true group
    statistics; record: file for the first batch, for `etr replay`.
    Raises InputError for an unknown field, and for a run that would not compute the objective.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    binary_rewards: bool = False
    columns: bool = False
    record: str | None = None

    def __post_init__(self) -> None:
        require()
        if not self.loss_mode.startswith(PREFIX):
            raise InputError(f"{LOSS}.loss_mode is {self.loss_mode}; with this _target_ give {PREFIX}<objective>")
        check(self.objective(), self.host, self.binary_rewards, self.columns)

    def objective(self) -> Objective:
        """The objective with its fields."""
        return named(self.loss_mode.removeprefix(PREFIX), self.fields)

    def recovery(self) -> Recovery:
        """How group statistics are read back from this run's advantages."""
        return recovery(estimator(str(self.host["adv_estimator"])), int(self.host["rollout_n"]))
