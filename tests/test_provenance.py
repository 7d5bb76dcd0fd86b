"""The hash of a loss: what must change it, what must not, and whose source cannot be read."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest
from test_floors import FLOORS, floor

import etr
from etr import provenance
from etr.errors import InputError
from etr.objectives.grpo import GRPO
from etr.provenance import hash_of, loss_fields, loss_hash, loss_sources
from etr.recipe import Recipe, load_recipe
from etr.uses import code_digest

CODE = b'''
"""A module."""
import torch


class A:
    """A class."""

    x: int = 1

    def f(self, a):
        """A function."""
        return a + 1
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (b'"""A function."""', b'"""Another\n        text."""', True),
        (b'"""A module."""', b"# only a comment", True),
        (b"return a + 1", b"return (  a +\n                1)  # why", True),
        (b"return a + 1", b"return a + 2", False),
        (b"return a + 1", b"return a + 1.0", False),
        (b"return a + 1", b"return a - 1", False),
        (b"x: int = 1", b"x: int = True", False),
        (b"x: int = 1", b"y: int = 1", False),
        (b"class A:", b"class A(dict):", False),
        (b"import torch", b"import torch as t", False),
    ],
)
def test_code_counts_and_wording_does_not(old: bytes, new: bytes, same: bool) -> None:
    assert old in CODE
    assert (code_digest(CODE) == code_digest(CODE.replace(old, new))) == same


def test_a_digest_is_a_fixed_value() -> None:
    """Written down, because a scorecard made by one version of Python is read by another."""
    source = b"def f(x: int) -> float:\n    return [f'{x!r:>{3}}', *x][0] if x else None\n"
    assert code_digest(source) == "9e9bf55b7579b98f6a0df6d10c8a2a251960a57084ef1ca1af1b76548777d7f2"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


MINE = """
    from dataclasses import dataclass
    import etr
    from etr import Region, regions
    from {helper} import width

    @dataclass(frozen=True)
    class Mine(etr.objectives.grpo.GRPO):
        def region(self, batch: etr.Batch, log_ratio):
            return regions.fixed(width(), width(), log_ratio)
"""
HELPER = "def width():\n    return 0.2\n"


def fresh(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe as a new process would load it."""
    for name in [n for n, m in sys.modules.items() if str(folder.parent) in str(getattr(m, "__file__", None) or "")]:
        del sys.modules[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *(p for p in sys.path if str(folder.parent) not in p)])
    return load_recipe(source)


def test_a_user_s_files_are_followed_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "one"
    write(folder, mine_x=MINE.format(helper="helper_x"), helper_x=HELPER, unrelated_x="x = 1\n")
    first = loss_hash(fresh(folder, "mine_x.py:Mine", monkeypatch))
    sources = loss_sources(fresh(folder, "mine_x.py:Mine", monkeypatch))
    assert {"mine_x.py", "helper_x.py", "etr.loss", "etr.regions", "etr.objectives.grpo", "etr.batch"} <= set(sources)
    assert not {"unrelated_x.py", "etr.objectives.etr", "etr"} & set(sources)
    write(folder, unrelated_x="x = 2\n", mine_x="# a comment\n" + textwrap.dedent(MINE.format(helper="helper_x")))
    assert loss_hash(fresh(folder, "mine_x.py:Mine", monkeypatch)) == first
    assert loss_hash(fresh(folder, "mine_x:Mine", monkeypatch)) == first  # however it was imported
    other = tmp_path / "two"
    write(other, mine_x=MINE.format(helper="helper_x"), helper_x=HELPER)
    assert loss_hash(fresh(other, "mine_x.py:Mine", monkeypatch)) == first  # and wherever it lies
    write(folder, helper_x="def width():\n    return 0.3\n")
    assert loss_hash(fresh(folder, "mine_x.py:Mine", monkeypatch)) != first


def test_a_package_is_followed_with_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "three" / "site-packages"  # installed, but it is the objective's own package
    text = MINE.format(helper=".parts.helper")
    write(folder, pack__in____init__="", pack__in__mine=text, pack__in__parts__in__helper=HELPER)
    write(folder, pack__in__parts__in____init__="", pack__in__other="x = 1\n")
    write(folder, elsewhere_x="x = 1\n", pack__in__mine=text + "    import elsewhere_x\n")
    recipe = fresh(folder, "pack.mine:Mine", monkeypatch)
    assert {"pack/mine.py", "pack/parts/helper.py"} <= set(loss_sources(recipe))
    assert not {"pack/other.py", "elsewhere_x.py"} & set(loss_sources(recipe))


def test_fields_count_and_the_optimiser_does_not() -> None:
    hashes = {
        loss_hash(load_recipe("etr", changes))
        for changes in ({}, {"micro": 0.4}, {"advantage": "leave_one_out"}, {"correction.kind": "tis"})
    }
    assert len(hashes) == 4
    assert loss_hash(load_recipe("etr", {"optimizer.lr": 0.3, "optimizer.updates": 9})) in hashes
    recipe = load_recipe("etr")
    assert hash_of(loss_sources(recipe), loss_fields(recipe)) == loss_hash(recipe)


def test_every_objective_has_a_hash_of_its_own() -> None:
    assert len({loss_hash(load_recipe(name)) for name in etr.list_objectives()}) == len(etr.list_objectives())


@pytest.mark.parametrize("module", ["etr.loss", "etr.regions", "etr.objectives.ppo", "etr.corrections"])
def test_a_line_of_etr_that_makes_the_loss_counts(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("grpo")
    before = loss_hash(recipe)
    changed = tmp_path / "changed.py"
    changed.write_text(Path(sys.modules[module].__file__ or "").read_text() + "\nEXTRA = 1\n")
    monkeypatch.setattr(sys.modules[module], "__file__", str(changed))
    assert loss_hash(recipe) != before


def test_only_the_lower_floors_count() -> None:
    names = {name for known in etr.list_objectives() for name in loss_sources(load_recipe(known))}
    assert all((floor(name) or 0) <= 3 for name in names)
    assert "etr.laws" not in names and "etr.stats" not in names
    on_top = {name for height, known in FLOORS.items() if height > 3 for name in known}
    assert on_top >= provenance.SKIPPED


def test_an_objective_without_a_file_is_refused() -> None:
    namespace: dict[str, object] = {"GRPO": GRPO, "__name__": "a_notebook"}
    exec("class Typed(GRPO): pass", namespace)
    cls = namespace["Typed"]
    assert isinstance(cls, type)
    with pytest.raises(InputError, match=r"'Typed' cannot be read .* put the class into a \.py file"):
        loss_hash(Recipe("typed", cls()))


LAZY = """
    import etr
    from dataclasses import dataclass
    from etr.objectives.grpo import GRPO
    {line}

    @dataclass(frozen=True)
    class Mine(GRPO):
        {field}
        def region(self, batch, log_ratio):
            {inside}
            return super().region(batch, log_ratio)
"""


def lazy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str = "", inside: str = "pass", field: str = ""
) -> Recipe:
    write(folder, lazy_x=LAZY.format(line=line, inside=inside, field=field))
    return fresh(folder, "lazy_x.py:Mine", monkeypatch)


def test_a_helper_imported_inside_a_function_counts_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "four"
    write(folder, late_x="from later_x import SCALE\n", later_x="SCALE = 1.0\n")
    recipe = lazy(folder, monkeypatch, inside="from late_x import SCALE")
    first = loss_hash(recipe)
    assert {"late_x.py", "later_x.py"} <= set(loss_sources(recipe)) and "late_x" not in sys.modules
    monkeypatch.setitem(sys.modules, "late_x", importlib.import_module("late_x"))
    assert loss_hash(recipe) == first  # and a run changes nothing
    write(folder, later_x="SCALE = -1.0\n")
    assert loss_hash(recipe) != first


def test_a_module_that_cannot_be_found_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = lazy(tmp_path / "five", monkeypatch, inside="import nowhere_x.y")
    with pytest.raises(InputError, match=r"imports 'nowhere_x\.y', which cannot be found"):
        loss_sources(recipe)
    loss_sources(lazy(tmp_path / "five", monkeypatch, line="try: import nowhere_x\n    except ImportError: pass"))


@pytest.mark.parametrize(
    ("line", "inside", "field", "reached"),
    [
        ('BASE = etr.registry.get("gspo")', "pass", "", {"etr.objectives.gspo"}),
        ('BASE = {"a": [etr.registry.get("gspo")]}', "pass", "", {"etr.objectives.gspo"}),
        ("import etr as e", 'e.get("gspo")', "", {"etr.objectives.gspo"}),
        ("from etr.registry import objective_class as o", 'o("gspo")', "", {"etr.objectives.gspo"}),
        ("from etr import registry", 'registry.get("gspo")', "", {"etr.objectives.gspo"}),
        ("WHICH = 'gspo'", "etr.get(WHICH)", "", {"etr.objectives.gspo", "etr.objectives.etr"}),
        ("", "pass", 'BASE = etr.get("gspo")', {"etr.objectives.gspo"}),
    ],
)
def test_an_objective_reached_by_name_counts(
    line: str, inside: str, field: str, reached: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set(loss_sources(lazy(tmp_path / "six", monkeypatch, line, inside, field)))
    assert reached <= found and ("etr.objectives.etr" in found) == ("etr.objectives.etr" in reached)
