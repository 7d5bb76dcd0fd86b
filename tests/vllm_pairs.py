"""A model in training and the vLLM engine that samples with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from etr.llm.export import exported_weights
from etr.llm.models import LanguageModel
from etr.llm.rollout import RolloutEngine, TransformersEngine


@dataclass
class Pair:
    language_model: LanguageModel
    engine: RolloutEngine
    steps: int = 0

    def sync(self) -> int:
        self.steps += 1
        self.engine.sync(exported_weights(self.language_model.model), self.steps)
        return self.steps

    def apart(self) -> float:
        """Largest difference of log-probs between engine and trainer on fixed sequences."""
        rows = [[3, 4, 5, 6, 7, 8, 9], [9, 2, 1, 17]]
        own = TransformersEngine(self.language_model).score(rows)
        return float((torch.cat(self.engine.score(rows)) - torch.cat(own)).abs().max())
