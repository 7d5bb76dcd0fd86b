"""Sampling completions: one small protocol, and an engine for it by transformers, by vLLM, or by a vLLM server."""

from __future__ import annotations

from etr.llm.rollout.base import (
    EngineError,
    EngineSettings,
    Rollout,
    RolloutEngine,
    left_pad,
    pack,
    texts,
    vocabulary_size,
)
from etr.llm.rollout.choose import choose_engine, make_engine
from etr.llm.rollout.seeds import request_seeds
from etr.llm.rollout.transformers_engine import TransformersEngine

__all__ = [
    "EngineError",
    "EngineSettings",
    "Rollout",
    "RolloutEngine",
    "TransformersEngine",
    "choose_engine",
    "left_pad",
    "make_engine",
    "pack",
    "request_seeds",
    "texts",
    "vocabulary_size",
]
