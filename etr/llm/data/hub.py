"""Rows of a Hugging Face dataset: hf:NAME[/config][@split], NAME being a folder or an id of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etr.errors import InputError, unknown

PREFIX = "hf:"
FORM = "hf:NAME[/config][@split], for example hf:openai/gsm8k/main@test"


class Source(NamedTuple):
    """A dataset's folder or hub id, its configuration and its split, as far as given."""

    name: str
    config: str | None
    split: str | None


def parse_source(text: str) -> Source:
    """Take hf:NAME[/config][@split] apart; a path that is a folder here is one, else NAME is owner/name.

    >>> parse_source("hf:openai/gsm8k/main@test")
    Source(name='openai/gsm8k', config='main', split='test')
    """
    place, at, split = text.removeprefix(PREFIX).partition("@")
    if not place or (at and not split):
        raise InputError(f"'{text}' names no dataset; write {FORM}")
    if Path(place).is_dir():
        return Source(place, None, split or None)
    parts = place.split("/")
    if len(parts) > 3 or not all(parts) or place.startswith((".", "~")):
        raise InputError(f"there is no folder '{place}', and it is no hub id; write {FORM}")
    return Source("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or None)


def hub_rows(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of the dataset, of its split train where none is given and there is one, or of the only split.

    Raises InputError when `datasets` is missing, the hub cannot be reached, or there is no such configuration or split.
    """
    source = parse_source(text)
    try:
        import datasets
    except ImportError:
        raise InputError(f"task '{text}' needs the library datasets: pip install datasets (or give a file)") from None
    datasets.disable_progress_bars()
    try:
        found = _load(datasets, source)
    except Exception as error:  # missing, private, broken, unreachable: the library has an exception for each
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"cannot load the dataset '{source.name}' ({type(error).__name__}: {reason}); check its name and the "
            "connection, or give a local folder or file"
        ) from error
    rows = _split(found, source, text)
    for number, row in enumerate(rows):
        yield f"'{text}' row {number}", row


def _load(datasets: Any, source: Source) -> Any:
    folder = Path(source.name)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():  # written by save_to_disk
        return datasets.load_from_disk(source.name)
    return datasets.load_dataset(source.name, source.config)


def _split(found: Any, source: Source, text: str) -> Any:
    if not isinstance(found, dict):  # a single split that was saved as such
        return found
    split = source.split or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else None)
    if split is None:
        raise InputError(
            f"task '{text}' has the splits {', '.join(found)}; write one after the name, as in {text}@test"
        )
    if split not in found:
        raise InputError(f"task '{text}': " + unknown("split", split, found))
    return found[split]
