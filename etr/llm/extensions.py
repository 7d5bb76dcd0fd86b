"""Tasks and rollout engines that other packages bring: how they register them, and what they must be.

Light on purpose: a plugin that imports this module loads neither transformers nor a model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from etr import plugins
from etr.errors import InputError, unknown
from etr.llm.items import Config, Item
from etr.llm.toy_tasks import TOY_TASKS

F = TypeVar("F", bound=Callable[..., Any])
TASKS: dict[str, Callable[..., Iterable[Item]]] = {}
ENGINES: dict[str, Callable[..., Any]] = {}
OWN_ENGINES = ("auto", "transformers", "vllm")
METHODS = ("generate", "score", "sync", "sleep", "wake", "close")  # of a rollout engine
DRAWS_PER_ITEM = 20  # questions may repeat, and the split keeps only some of them
_REWARDS: dict[str, str] = {}


def register_task(name: str, reward: str | Callable[[str, str, str], Any] = "text") -> Callable[[F], F]:
    """Decorator: make `items(seed)` the questions of the task `name`, the same for the same seed.

    The function gives `etr.llm.items.Item`s, a list or one by one. Its keyword-only arguments are the task's options.
    reward: text, exact, numeric, math, regex:PATTERN, or a function of (prompt, completion, answer) that stands in a
    module, where another process finds it. The name needs a hyphen: without one it could be a dataset of reasoning-gym.
    Raises InputError for a name that is taken or unusable, another signature, and a reward that cannot be found.
    """

    def add(items: F) -> F:
        if not re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)+", name):
            raise InputError(
                f"'{name}' cannot be the name of a task; take small letters and digits with at least one hyphen, such "
                "as my-task: names without one are reasoning-gym's"
            )
        if name in TOY_TASKS:
            raise InputError(f"task '{name}' is one of etr's own; choose another name")
        _check_callable(f"task '{name}'", items, ("seed",))
        _check_free("task", name, items, TASKS)
        _REWARDS[name] = _reward_spec(name, reward)
        TASKS[name] = items
        return items

    return add


def register_engine(name: str) -> Callable[[F], F]:
    """Decorator: make a class, or a function `make(language_model, settings)`, the rollout engine `name`.

    What it returns has what `etr.llm.rollout.RolloutEngine` says, with `name` as its name. A function may import what
    is heavy when it is called. Raises InputError for a name that is taken or unusable, and for another signature.
    """

    def add(factory: F) -> F:
        if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name):
            raise InputError(f"'{name}' cannot be the name of an engine; take small letters, digits and hyphens")
        if name in OWN_ENGINES:
            raise InputError(f"engine '{name}' is one of etr's own; choose another name")
        if isinstance(factory, type):
            _check_methods(f"engine '{name}'", factory)
        _check_callable(f"engine '{name}'", factory, ("language_model", "settings"))
        _check_free("engine", name, factory, ENGINES)
        ENGINES[name] = factory
        return factory

    return add


def plugin_items(name: str, seed: int, size: int, config: Config) -> tuple[Iterator[Item], str] | None:
    """Items of the task `name` of a plugin and the reward that `auto` means; None if no plugin brings it.

    Raises InputError for an option that the task does not take, and when it gives something else than items.
    """
    if "-" not in name:  # by its name it is no plugin's, so none has to be loaded
        return None
    if name not in TASKS:
        plugins.load()
    if name not in TASKS:
        return None
    valid = [p.name for p in inspect.signature(TASKS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in config:
        if key not in valid:
            raise InputError(unknown(f"option of task '{name}':", key, valid or ["none"]))
    return _checked_items(name, seed, DRAWS_PER_ITEM * size, config), _REWARDS[name]


def plugin_engine(name: str, language_model: Any, settings: Any) -> Any:
    """The engine `name` of a plugin, ready to sample; None if no plugin brings it.

    language_model, settings: what `etr.llm.rollout.make_engine` takes, whose types are too heavy for this module.
    Raises InputError if what is made is no engine, or has another name.
    """
    if name not in ENGINES:
        plugins.load()
    if name not in ENGINES:
        return None
    engine = ENGINES[name](language_model, settings)
    who = f"engine '{name}' of {plugins.origin(ENGINES[name])}"
    _check_methods(who, engine)
    if getattr(engine, "name", None) != name or not isinstance(getattr(engine, "version", None), int):
        found = f"name {getattr(engine, 'name', None)!r} and version {getattr(engine, 'version', None)!r}"
        raise InputError(f"{who} has {found}; give it the name '{name}' and a whole number as version")
    return engine


def _checked_items(name: str, seed: int, most: int, config: Config) -> Iterator[Item]:
    who = f"task '{name}' of {plugins.origin(TASKS[name])}"
    try:
        for item in islice(TASKS[name](seed, **config), most):
            words = (*(m["content"] for m in item.messages), item.answer) if isinstance(item, Item) else ()
            if len(words) < 2 or not all(isinstance(word, str) for word in words):
                raise InputError(f"{who} gave {item!r}; give etr.llm.items.Item(user('question'), 'answer')")
            yield item
    except InputError:
        raise
    except Exception as error:  # another's code may raise anything
        raise InputError(f"{who} fails ({type(error).__name__}: {error}); mend it") from error


def _reward_spec(name: str, reward: str | Callable[[str, str, str], Any]) -> str:
    """The reward as `etr.llm.rewards.scores.find` finds it, also in another process."""
    if not isinstance(reward, str):
        who = f"the reward of task '{name}'"
        _check_callable(who, reward, ("prompt", "completion", "answer"))
        place = f"{reward.__module__}:{reward.__qualname__}"
        if not re.fullmatch(r"[\w.]+:\w+", place) or reward.__module__ == "__main__":
            raise InputError(f"{who} is {place}, which no other process can find; define it at the top of a module")
        return place
    if ":" in reward and not reward.startswith("regex:"):
        raise InputError(f"the reward of task '{name}' is '{reward}'; give the function itself")
    from etr.llm.rewards import scores

    scores.find(reward)
    return reward


def _check_callable(who: str, function: Any, arguments: tuple[str, ...]) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        raise InputError(f"{who} cannot be called with ({', '.join(arguments)}); give a function of these") from None


def _check_methods(who: str, engine: Any) -> None:
    lacking = [method for method in METHODS if not callable(getattr(engine, method, None))]
    if lacking:
        raise InputError(f"{who} lacks {', '.join(lacking)}; etr.llm.rollout.RolloutEngine says what they do")


def _check_free(kind: str, name: str, thing: Any, table: dict[str, Any]) -> None:
    if name in table and not plugins.same(table[name], thing):
        raise InputError(plugins.taken(kind, name, table[name]))
