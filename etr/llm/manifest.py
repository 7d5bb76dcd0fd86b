"""What a folder should hold: the size and checksum of each file, so that damage is found before it is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from etr.errors import InputError
from etr.files import atomic_write, read_json, to_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Record every file of the folder. Raises InputError when the system refuses."""
    files = {path.name: {"bytes": path.stat().st_size, "blake2b": checksum(path)} for path in sorted(folder.iterdir())}
    atomic_write(folder / MANIFEST, to_json({"files": files}, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with the folder in a few words, or None if every recorded file is there and unchanged."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, record in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != record["bytes"]:
                return f"{name} has {path.stat().st_size} of {record['bytes']} bytes"
            if checksum(path) != record["blake2b"]:
                return f"{name} is not what was written: its checksum differs"
    except (InputError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or broken"
    except OSError as error:
        return f"a file cannot be read: {error.strerror}"
    return None


def checksum(path: Path) -> str:
    """BLAKE2b of a file, 128 bits in hexadecimal: as fast as the disk, and no accident goes unseen."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
