"""Floor 4: what a trainer holds to record one of its first updates (`etr.recorded`) while it computes it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import etr
from etr.batch import CURRENT, Batch, LossOutput, Region
from etr.errors import InputError
from etr.recipe import Recipe
from etr.recorded import Recorded, apart, batch_of, largest_move, save, tensors_of
from etr.update import Forward, Observe

ENOUGH = 1e-3  # nats: a policy that has moved by this much shows its region, and no rounding does in float32
UPDATES = 8  # with a gradient, looked at: a run of one update per rollout never moves away from its old policy
LOOKS = 64  # at updates of any kind: groups may all be right or all be wrong at first
STEP_GAP = "step_gap"  # setting: how far the step that the run took is from that of its gradient, in sizes of it
MOST_BYTES = 2**28  # of a record; further micro-batches are left out, and the record says so


class _Part(NamedTuple):
    tensors: dict[str, Tensor]
    loss: Tensor
    gradient: Tensor
    region: Region


class Recording:
    """Records the update in which the policy stands furthest from its old one, until it is at `ENOUGH`.

    So the first update is recorded, and replaced by the first that shows a region: at r = 1 none does, nor where no
    token has a gradient. After `UPDATES` or `LOOKS` what there is stays, and nothing is copied any more.

    A host that sees single micro-batches calls `observe`, then `finish` with the denominator of its whole step; a
    trainer of ours wraps what it gives to `add_gradients` by `around`, and calls `finish` behind it.
    Whatever fails in a recording is a warning, and its end: no run should end for it.
    """

    def __init__(self, path: Path, recipe: Recipe, host: str, settings: Mapping[str, Any] | None = None) -> None:
        self.path, self.recipe, self.host = path, recipe, host
        self.settings: dict[str, Any] = dict(settings or {})
        self.active, self._hash = True, ""
        self._parts: list[_Part] = []
        self._left_out = self._bytes = self._seen = self._with_gradient = 0
        self._shown = -math.inf
        with self.guarded():
            from etr.provenance import loss_hash

            self._hash = loss_hash(recipe)  # now: a file that is edited later is not the code that was loaded

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Within it an error of any kind switches the recording off, with a warning."""
        try:
            yield
        except Exception as error:  # any: an unreadable file of the user's, a full disk, shapes that do not fit
            self.active, self._parts = False, []
            text = f"{error}" if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            message = f"{text}; the run goes on, and `etr replay` will have no record, or an earlier one"
            warnings.warn(message, RuntimeWarning, 4)

    def around(
        self, forward: Forward, observe: Observe | None = None, scale: float = 1.0
    ) -> tuple[Forward, Observe | None]:
        """`forward` and `observe` for `etr.update.add_gradients`, which also record; scale: as given to it."""
        if not self.active:
            return forward, observe
        self.settings["scale"] = scale

        def watched(rows: slice) -> Mapping[str, Tensor]:
            columns = forward(rows)
            columns["log_probs"].retain_grad()
            return columns

        def seen(part: Batch, out: LossOutput) -> None:
            gradient = part.log_probs.grad
            gradient = torch.zeros_like(part.log_probs) if gradient is None else gradient / scale
            self.observe(part, out.loss, gradient, out.region)
            if observe is not None:
                observe(part, out)

        return watched, seen

    def observe(self, part: Batch, loss: Tensor, gradient: Tensor, region: Region) -> None:
        """One micro-batch `[b, T]` of the update, prepared; its share of the loss, and the gradient of that.

        gradient: with respect to part.log_probs, `[b, T]`, without a data-parallel factor; region: broadcastable.
        All micro-batches of one update are equally wide.
        """
        if not self.active:
            return
        with self.guarded():
            self._keep(part, loss, gradient, region)

    def _keep(self, part: Batch, loss: Tensor, gradient: Tensor, region: Region) -> None:
        named = tensors_of(part)
        size = sum(value.numel() * value.element_size() for value in named.values())
        if self._parts and self._bytes + size > MOST_BYTES:
            self._left_out += 1
            return
        self._bytes += size
        bounds = Region(*(apart(bound.expand_as(gradient)) for bound in region))
        tensors = {name: apart(value) for name, value in named.items()}
        self._parts.append(_Part(tensors, apart(loss.squeeze()), apart(gradient), bounds))
        self.settings["device"] = part.log_probs.device.type

    def finish(self, denominator: Tensor | float, loss: Tensor | None = None) -> None:
        """The update is complete: write it if it shows more than the one before. denominator: of the whole update.

        loss: of the update, where the run made it in one sum; otherwise the micro-batches' losses are added.
        """
        with self.guarded():
            self._finish(torch.as_tensor(denominator), loss)

    def _finish(self, denominator: Tensor, loss: Tensor | None) -> None:
        parts, self._parts = self._parts, []
        left_out, self._left_out, self._bytes = self._left_out, 0, 0
        if not (self.active and parts):
            return
        self._seen += 1
        names = parts[0].tensors
        batch = batch_of({name: torch.cat([part.tensors[name] for part in parts]) for name in names})
        some = any(bool(part.gradient.any()) for part in parts)
        self._with_gradient += some
        shows = largest_move(batch) if some else -1.0
        if shows > self._shown:
            self._shown = shows
            more = {"update": self._seen} | ({"micro_batches_left_out": left_out} if left_out else {})
            losses = [part.loss for part in parts]
            whole = sum(losses[1:], losses[0]) if loss is None else apart(loss.squeeze())
            self._write(parts, batch, denominator, whole, {**self.settings, **more})
        go_on = shows < ENOUGH and self._with_gradient < UPDATES and self._seen < LOOKS
        self.active = self.active and go_on

    def _write(
        self, parts: list[_Part], batch: Batch, denominator: Tensor, loss: Tensor, settings: dict[str, Any]
    ) -> None:
        ends = torch.tensor([0, *(len(part.gradient) for part in parts)]).cumsum(0).tolist()
        recorded = Recorded(
            recipe=self.recipe,
            batch=batch,
            denominator=apart(denominator.squeeze()),
            parts=tuple(slice(start, stop) for start, stop in pairwise(ends)),
            loss=loss,
            gradient=torch.cat([part.gradient for part in parts]),
            low=torch.cat([part.region.low for part in parts]),
            high=torch.cat([part.region.high for part in parts]),
            host=self.host,
            settings=settings,
            loss_hash=self._hash,
            versions=versions(self.host),
        )
        save(self.path, recorded)


def with_leaves(batch: Batch) -> Batch:
    """The batch with the current policy's columns as new leaves, so that a gradient can be read whichever is used."""
    columns = {name: value for name in CURRENT if (value := getattr(batch, name)) is not None}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in columns.items()}  # of nobody else
    return dataclasses.replace(batch, **dict[str, Any](leaves))


def versions(*packages: str) -> dict[str, str]:
    """Versions of etr, torch and those packages that are installed; "cpu": the vector instructions torch uses."""
    found = {"etr": etr.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    for name in ("torch", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a host that is no package, such as the toy trainer
            continue
    return found
