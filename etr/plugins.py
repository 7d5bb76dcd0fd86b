"""Floor 1: other packages bring objectives, environments, tasks and engines, by the entry-point group `etr.plugins`.

    [project.entry-points."etr.plugins"]
    my_method = "my_method"        # a module: importing it registers all it brings

Nothing is imported before it is needed: plugins are loaded when a name is looked up that is not this project's, or when
names are listed. The environment variable ETR_PLUGINS limits them: `none`, or names of plugins with commas between.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal

from etr.errors import InputError, unknown

GROUP, VARIABLE = "etr.plugins", "ETR_PLUGINS"
OWN = ("etr", "toy_envs")
# Where names are registered: kind -> module and its table of names. A table is looked at where its module is there
# already: who registers in it has imported it.
TABLES = {
    "objective": ("etr.registry", "_OBJECTIVES"),
    "environment": ("toy_envs.registry", "FAMILIES"),
    "task": ("etr.llm.extensions", "TASKS"),
    "engine": ("etr.llm.extensions", "ENGINES"),
}
State = Literal["installed", "loaded", "failed", "switched off"]


class PluginWarning(UserWarning):
    """A plugin could not be loaded. Its names are missing, and everything else works."""


@dataclass(frozen=True)
class Plugin:
    """One entry point: its name, the module that it names, the package that brings it, and what became of it."""

    name: str
    module: str
    package: str
    version: str
    state: State = "installed"
    error: str = ""

    @property
    def source(self) -> str:
        """Package and version, as people read them."""
        return f"{self.package} {self.version}"


_plugins: list[Plugin] | None = None  # None before they are loaded


def installed() -> list[Plugin]:
    """All plugins as ETR_PLUGINS leaves them, sorted; imports none. Raises InputError if it names one not there."""
    found, wanted = _scan(), os.environ.get(VARIABLE, "")
    if not wanted:
        return list(found)
    names = [] if wanted == "none" else [name.strip() for name in wanted.split(",")]
    known = {word for plugin in found for word in (plugin.name, plugin.package)}
    for name in names:
        if name not in known:
            raise InputError(unknown(f"plugin in {VARIABLE}:", name, {"none", *known}))
    off = [plugin for plugin in found if not {plugin.name, plugin.package} & set(names)]
    return [dataclasses.replace(plugin, state="switched off") if plugin in off else plugin for plugin in found]


def load() -> list[Plugin]:
    """Import all plugins, once, and say what became of each; one that fails is a PluginWarning, no error.

    Raises InputError as `installed` does.
    """
    global _plugins
    if _plugins is None:
        _plugins = installed()  # before the imports: a plugin may look names up while it is imported
        for i, plugin in enumerate(_plugins):
            if plugin.state == "installed":
                _plugins[i] = _imported(plugin)
    return list(_plugins)


def brought(plugin: Plugin) -> list[tuple[str, str]]:
    """What a loaded plugin has registered: kinds and names."""
    return [
        (kind, name)
        for kind, table in tables().items()
        for name, thing in sorted(table.items())
        if _owner(thing.__module__) == _place(plugin)
    ]


def origin(thing: Any) -> str:
    """Where a registered class or function comes from: "etr", a plugin's package with its version, or a module."""
    module: str = thing.__module__
    if module.partition(".")[0] in OWN:
        return "etr"
    owners = [plugin.source for plugin in _scan() if _place(plugin) == _owner(module)]
    return owners[0] if owners else module


def taken(kind: str, name: str, known: Any) -> str:
    """The sentence for a name that another class or function has."""
    source, place = origin(known), f"{known.__module__}.{known.__qualname__}"
    whose = "" if source in ("etr", known.__module__) else f" of package {source}"
    return f"{kind} '{name}' is already registered by {place}{whose}; choose another name"


def same(one: Any, other: Any) -> bool:
    """Are they one definition, made twice? Running a notebook cell again is no clash of names."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def tables() -> dict[str, dict[str, Any]]:
    """Kind -> names -> what is registered, for all kinds whose module is imported."""
    found = {kind: getattr(sys.modules.get(module), name, None) for kind, (module, name) in TABLES.items()}
    return {kind: table for kind, table in found.items() if table is not None}


@functools.cache
def _scan() -> tuple[Plugin, ...]:
    """The entry points of all installed packages: 10 to 40 ms for some hundred packages, so read once."""
    found = []
    for entry in entry_points(group=GROUP):
        package = str(entry.dist.metadata["Name"]) if entry.dist else "?"
        version = str(entry.dist.version) if entry.dist else "?"
        found.append(Plugin(entry.name, entry.value.partition(":")[0].strip(), package, version))
    return tuple(sorted(found, key=lambda plugin: (plugin.package, plugin.name)))


def _imported(plugin: Plugin) -> Plugin:
    before = {kind: dict(table) for kind, table in tables().items()}
    try:
        importlib.import_module(plugin.module)
    except (Exception, SystemExit) as error:  # whatever is wrong in another's package, ours goes on
        _restore(before)
        reason = " ".join(str(error).split())
        what = reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
        message = (
            f"plugin '{plugin.name}' of package {plugin.source} is left out ({what}); mend or uninstall it, or leave "
            f"it out by {VARIABLE}; its traceback: python -c 'import {plugin.module}'"
        )
        warnings.warn_explicit(message, PluginWarning, GROUP, 1)  # the line of ours that asked tells a user nothing
        return dataclasses.replace(plugin, state="failed", error=what)
    return dataclasses.replace(plugin, state="loaded")


def _restore(before: Mapping[str, Mapping[str, Any]]) -> None:
    """Take out again what a plugin registered before it failed: half of a package is no use to anyone."""
    for kind, table in tables().items():
        old = before.get(kind)  # None where the plugin was the first to import the table's module
        kept = {n: thing for n, thing in table.items() if origin(thing) == "etr"} if old is None else old
        table.clear()
        table.update(kept)


def _place(plugin: Plugin) -> str:
    """The module, or the package of modules, that belongs to a plugin alone; for most, all below their first name."""
    top = plugin.module.partition(".")[0]
    shared = any(other != plugin and other.module.partition(".")[0] == top for other in _scan())
    return plugin.module if shared else top


def _owner(module: str) -> str:
    """The place of the plugin that a module belongs to, the innermost; "" for none."""
    places = [_place(plugin) for plugin in _scan() if f"{module}.".startswith(f"{_place(plugin)}.")]
    return max(places, key=len, default="")
