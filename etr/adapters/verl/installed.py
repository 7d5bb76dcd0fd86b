"""Is verl here, and which?"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from etr.adapters.verl_settings import check_version
from etr.errors import InputError


def version() -> str | None:
    """The installed version of verl, or None. The package's metadata is asked: importing verl takes seconds."""
    try:
        return installed("verl")
    except PackageNotFoundError:
        return None


def require() -> str:
    """The version of verl. Raises InputError if there is none or it is too old; warns if it is newer than tested."""
    found = version()
    if found is None:
        raise InputError("verl is not installed; pip install 'verl==0.9.1' in an environment of its own")
    check_version(found)
    return found
