"""Our settings in a host's own terms: one row says both, and what they mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from etr.errors import InputError


class Term(NamedTuple):
    """One of our settings beside the host's key and value for it ("" for none), and what it means."""

    ours: str
    key: str
    value: Any
    meaning: str


@dataclass(frozen=True)
class Translation:
    """All terms of a run, and sentences on what the host will do otherwise than we do.

    reserved: further keys and sections of the host that make the loss, the weights or the optimiser another one.
    """

    terms: Sequence[Term]
    warnings: Sequence[str] = ()
    reserved: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """Key to value, of those terms that have a key of the host's."""
        return {term.key: term.value for term in self.terms if term.key}


def with_own(translation: Translation, own: Mapping[str, Any], host: str) -> Translation:
    """The translation with the host's own settings behind it. Raises InputError for a key that ours decide already.

    A key above or below one of ours counts as well: it would replace a whole section. So does a reserved one.
    """
    taken = {term.key.lstrip("+"): term for term in translation.terms if term.key}
    for key in own:
        for name, term in taken.items():
            if touches(key, name):
                raise InputError(
                    f"--host-set {key}: {host}'s {name} follows from {term.ours or 'the recipe'} (it is {term.value}), "
                    "which the scorecard and the checks stand for; change it there"
                )
        for section in translation.reserved:
            if touches(key, section):
                raise InputError(
                    f"--host-set {key}: {section} is part of {host}'s loss, weights or optimiser, which the recipe "
                    "decides; change the recipe by --set"
                )
    rows = [Term("--host-set", key, value, "given by hand") for key, value in own.items()]
    return dataclasses.replace(translation, terms=[*translation.terms, *rows])


def touches(key: str, name: str) -> bool:
    """Does setting `key` change `name`, which may be a key, or a section with keys below it?

    In Hydra `+` and `~` add and remove, and `group/option@package` replaces a whole section.

    >>> touches("+a.b", "a"), touches("a", "a.b"), touches("x/y@a.b", "a.b.c"), touches("a.bc", "a.b")
    (True, True, True, False)
    """
    parts = (part.replace("/", ".") for part in key.lstrip("+~").split("@"))
    return any(f"{part}.".startswith(f"{name}.") or f"{name}.".startswith(f"{part}.") for part in parts)
