"""Plugins for the tests of plugins: small packages that are real to importlib.metadata, and forgotten afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import pytest

import toy_envs
from etr import plugins, registry
from etr.llm import extensions

Install = Callable[..., None]
OBJECTIVE = """
import etr
from dataclasses import dataclass
from etr.objectives.grpo import GRPO

@etr.register({name!r})
@dataclass(frozen=True)
class Rule(GRPO):
    eps_low: float = 0.1
    paper = etr.Paper("A rule [x]", "", "reconstructed")
"""
ENVIRONMENT = """
import torch, toy_envs
from toy_envs.base import SequenceEnv

@toy_envs.register({name!r})
class {cls}(SequenceEnv):
    QUESTION = "Is it found?"
    PRESETS = {{"small": {{"win": 0.5}}, "large": {{"win": 1.0}}}}

    def __init__(self, win):
        super().__init__(toy_envs.ExactModel(2, 1, torch.tensor([[win, 0.0]], dtype=torch.float64)))
"""
TASK = """
from etr.llm.extensions import register_task
from etr.llm.items import Item, user

def half(prompt, completion, answer):
    return 0.5 * (completion == answer)

@register_task({name!r}, reward=half)
def items(seed, *, last=3):
    while True:
        yield from (Item(user(f"{{seed}}:{{i}}"), str(i)) for i in range(last))
"""
ENGINE = """
from etr.llm.extensions import register_engine

@register_engine({name!r})
def make(language_model, settings):
    raise AssertionError
"""


@pytest.fixture(name="install")
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(package, source)` puts a package with its metadata onto the path; all of it is forgotten afterwards."""
    tables = [registry._OBJECTIVES, toy_envs.FAMILIES, extensions.TASKS, extensions.ENGINES, gymnasium.registry]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(plugins, "_plugins", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._scan.cache_clear()

    def add(package: str, source: str, entry: str | None = None) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[etr.plugins]\n{module} = {entry or module}\n")

    yield add
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    plugins._scan.cache_clear()
