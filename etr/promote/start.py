"""Before a promoted run starts: is this still the code and the recipe that passed the gate?"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from etr.errors import InputError, unknown
from etr.files import read_json
from etr.llm.config import TrainConfig
from etr.promote.decided import changed, decided
from etr.promote.job import HOSTS
from etr.promote.llm import SETTINGS
from etr.promote.recipes import FILE, RECORD, promoted_reference, read_promoted
from etr.promote.texts import SETTINGS as HOST_SETTINGS
from etr.provenance import loss_hash, loss_sources
from etr.recipe import Recipe

RUN = "run"  # where our own trainer writes, inside of the promoted folder
KEYS: dict[str, type] = {
    **dict.fromkeys(("host", "loss_hash"), str),
    **dict.fromkeys(("files", "editable", "decided", "loss_sources"), dict),
    "refused": list,
    "processes": int,
}

Say = Callable[[str], None]


class Promoted(NamedTuple):
    """What a promoted folder says: its host, its recipe, and the processes that train."""

    host: str
    recipe: Recipe
    processes: int


def check_folder(folder: Path, say: Say) -> Promoted:
    """A promoted folder whose files, loss and code are those that were promoted.

    Says what was forced, which settings and scripts were edited, and when the host's version was not tested. Raises
    InputError when the folder is none, when the recipe, a copied file, the scorecard or what makes the loss in the
    host's settings was changed, when the code of the loss is another one here, or when the host is not installed.
    """
    record = read_record(folder)
    host, files, editable = record["host"], record["files"], record["editable"]
    for name, digest in files.items():
        if not _same(folder / name, digest):
            raise InputError(f"'{folder / name}' is not the file that was promoted; promote the recipe again")
    recipe = read_promoted(folder / FILE)
    if loss_hash(recipe) != record["loss_hash"]:
        raise InputError(_changed(record["loss_sources"], loss_sources(recipe)))
    for sentence in record["refused"]:
        say(f"forced through the gate although {sentence}")
    for name, digest in editable.items():
        if not _same(folder / name, digest):  # a smaller micro-batch, say, need not stop anybody
            say(f"'{folder / name}' was edited since the promotion, which did not check what it says now")
    path = folder / HOST_SETTINGS[host]
    if differences := changed(record["decided"], decided(host, path)):
        raise InputError(f"'{path}': {'; '.join(differences)}, which is another loss; promote the recipe again")
    check_host(host, folder, say)
    return Promoted(host, recipe, record["processes"])


def read_record(folder: Path) -> dict[str, Any]:
    """The content of promotion.json. Raises InputError when it is missing, broken or of another version of etr."""
    if not (folder / RECORD).is_file():
        raise InputError(f"'{folder}' is no promoted folder (it has no {RECORD}); make one by `etr promote`")
    record = read_json(folder / RECORD)
    for key, kind in KEYS.items():
        if not isinstance(record, dict) or not isinstance(record.get(key), kind):
            raise InputError(f"'{folder / RECORD}' has no {key}; promote the recipe again")
    if record["host"] not in HOSTS:
        raise InputError(f"'{folder / RECORD}': " + unknown("host", record["host"], HOSTS))
    return dict(record)


def check_host(host: str, folder: Path, say: Say) -> None:
    """Is the host's package there, in a tested version that takes these settings? Raises InputError if not."""
    if host == "llm":
        return
    lowest, highest = import_module(f"etr.adapters.{host}_settings").TESTED
    if importlib.util.find_spec(host) is None:
        raise InputError(f"{host} is not installed here; pip install '{host}>={lowest},<={highest}'")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _check_verl() if host == "verl" else _check_trl(folder)
    for warning in caught:
        say(str(warning.message))


def settings(folder: Path) -> TrainConfig:
    """The settings of a folder for our own trainer. Raises InputError when they are broken."""
    path = folder / SETTINGS
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = {**values, "track": tuple(values["track"]), "reward": promoted_reference(folder, values["reward"])}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"'{path}' holds no settings of a run ({reason}); promote the recipe again") from error
    return TrainConfig.from_dict(values)


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _check_verl() -> None:
    from etr.adapters.verl_settings import check_version

    check_version(version("verl"))


def _check_trl(folder: Path) -> None:
    from etr.adapters.trl.main import read_settings
    from etr.adapters.trl.start import check_version
    from etr.promote.trl import check_types

    check_version()
    from trl import GRPOConfig  # after the version, without which it may fail

    check_types(read_settings(folder)["arguments"], GRPOConfig)


def _changed(then: dict[str, str], now: dict[str, str]) -> str:
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    what = f"{', '.join(names)} changed" if names else "its fields changed"
    return f"the code of this loss is not what was promoted: {what}; validate and promote again, or restore it"
