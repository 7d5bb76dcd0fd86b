"""What an objective, an environment, a task and an engine of another package must be, checked when it is registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from plugin_packages import Install, forgotten  # noqa: F401  (the fixture `install`)

import etr
import toy_envs
from etr import plugins
from etr.errors import InputError
from etr.llm.extensions import register_engine, register_task
from etr.llm.items import Item, user
from etr.objective import Objective
from etr.objectives.grpo import GRPO


@dataclass(frozen=True)
class NoPaper(Objective):
    pass


class Empty(toy_envs.ExactEnv[Any]):
    def _observation(self) -> Any: ...


class Hollow(Empty):
    QUESTION = "?"
    PRESETS = {"small": {}}  # noqa: RUF012

    def __init__(self) -> None: ...


class Early(Hollow):
    PRESETS = {"stage-easy": {}}  # noqa: RUF012


class Unfinished(toy_envs.ExactEnv[Any]):
    QUESTION, PRESETS = "?", {"small": {}}


class Lame:
    def __init__(self, language_model: Any, settings: Any) -> None: ...

    def generate(self) -> None: ...


def seeded(seed: int) -> list[Item]:
    return [Item(user("1"), "1")]


@pytest.mark.parametrize(
    ("register", "what"),
    [
        (lambda: etr.register("my method")(NoPaper), "'my method' cannot be the name of an objective"),
        (lambda: etr.register("x")(lambda: None), "register a class made from etr.Objective"),  # type: ignore[type-var]
        (lambda: etr.register("x")(NoPaper), "NoPaper has no paper"),
        (lambda: toy_envs.register("x")(dict), "register a class made from toy_envs.ExactEnv"),  # type: ignore[type-var]
        (lambda: toy_envs.register("x")(Unfinished), "lacks _observation"),
        (lambda: toy_envs.register("x")(Empty), "needs a QUESTION and PRESETS"),
        (lambda: toy_envs.register("x")(Hollow), "has no exact model"),
        (lambda: toy_envs.register("tree")(Hollow), "already registered by toy_envs.token_tree.TokenTree"),
        (lambda: toy_envs.register("tree-easy")(Hollow), "'tree-easy' is a name of toy_envs.token_tree.TokenTree"),
        (lambda: toy_envs.register("two")(Early), "'two-stage-easy' is a name of toy_envs.two_stage.TwoStage"),
        (lambda: register_task("words")(seeded), "at least one hyphen"),
        (lambda: register_task("copy-reverse")(seeded), "one of etr's own"),
        (lambda: register_task("my-task")(lambda: []), r"task 'my-task' cannot be called with \(seed\)"),
        (lambda: register_task("my-task", reward="exct")(seeded), "unknown reward 'exct'; did you mean 'exact'"),
        (lambda: register_task("my-task", reward="regex:(")(seeded), "is no regular expression"),
        (lambda: register_task("my-task", reward="a.py:b")(seeded), "give the function itself"),
        (lambda: register_task("my-task", reward=lambda a, b, c: 1.0)(seeded), "no other process can find"),
        (lambda: register_task("my-task", reward=len)(seeded), r"cannot be called with \(prompt, completion, answer\)"),
        (lambda: register_engine("vllm")(Lame), "one of etr's own"),
        (lambda: register_engine("http://x")(Lame), "cannot be the name of an engine"),
        (lambda: register_engine("lame")(Lame), "engine 'lame' lacks score, sync, sleep, wake, close"),
        (lambda: register_engine("lame")(lambda: None), r"cannot be called with \(language_model, settings\)"),
    ],
)  # fmt: skip
def test_what_breaks_a_contract_is_not_registered(install: Install, register: Callable[[], Any], what: str) -> None:
    before = {kind: dict(table) for kind, table in plugins.tables().items()}
    with pytest.raises(ValueError, match=what):
        register()
    assert plugins.tables() == before


def test_a_field_without_a_default_is_refused(install: Install) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Strict(GRPO):
        strength: float

    with pytest.raises(InputError, match="Strict has no default for strength"):
        etr.register("strict")(Strict)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return ['2 + 3']", "gave '2 \\+ 3'; give etr.llm.items.Item"),
        ("return [Item(user('2 + 3'), 5)]", "give etr.llm.items.Item"),
        ("return [Item((), '5')]", "give etr.llm.items.Item"),
        ("yield Item(user('1'), '1'); 1 / 0", r"task 'bad-task' of bad 2\.5 fails \(ZeroDivisionError"),
    ],
)
def test_a_task_that_gives_no_items(install: Install, body: str, what: str) -> None:
    from etr.llm.tasks import load_task

    start = "from etr.llm.extensions import *\nfrom etr.llm.items import *\n@register_task('bad-task')\n"
    install("bad", f"{start}def items(seed):\n    {body}\n")
    with pytest.raises(InputError, match=what):
        load_task("bad-task")


class Whole:
    """Has what an engine needs, and does nothing."""

    def __init__(self, name: str, version: object) -> None:
        self.name, self.version = name, version

    def generate(self) -> None: ...

    score = sync = sleep = wake = close = generate


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        (Whole("whole", 0), None),
        (Whole("other", 0), "has name 'other' and version 0"),
        (Whole("whole", None), "has name 'whole' and version None; give it the name 'whole' and a whole number"),
        (object(), "lacks generate, score, sync, sleep, wake, close"),
    ],
)
def test_what_an_engine_must_be(install: Install, engine: Any, what: str | None) -> None:
    pytest.importorskip("transformers")
    from etr.llm.rollout import EngineSettings, make_engine

    register_engine("whole")(lambda language_model, settings: engine)
    said: list[str] = []
    model: Any = None
    if what is None:
        assert make_engine("whole", model, EngineSettings(), said.append) is engine and "whole" in said[0]
        with pytest.raises(InputError, match="unknown engine 'whol'; did you mean 'whole'"):
            make_engine("whol", model, EngineSettings())
        return
    with pytest.raises(InputError, match=what):
        make_engine("whole", model, EngineSettings())
