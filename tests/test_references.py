"""Objectives in files of their own: found by path, safe beside modules of the same name, written down so as to be
found again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etr import references, registry
from etr.errors import InputError
from etr.recipe import load_recipe, recipe_from_dict

RULE = """
from dataclasses import dataclass
import etr
from etr.objectives.grpo import GRPO

{decorator}
@dataclass(frozen=True)
class Mine(GRPO):
    eps_high: float = 0.35
"""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own; what is imported and registered there is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_OBJECTIVES", dict(registry._OBJECTIVES))
    monkeypatch.setattr(references, "_FILES", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: str, decorator: str = "", extra: str = "") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(RULE.format(decorator=decorator) + extra)
    return f"{path}:Mine"


def test_a_class_in_a_file_anywhere(tmp_path: Path) -> None:
    recipe = load_recipe(write("deep/down/my_rule.py"), {"eps_low": 0.1})
    assert (recipe.name, recipe.objective.eps_high, recipe.objective.eps_low) == ("Mine", 0.35, 0.1)  # type: ignore[attr-defined]
    assert type(recipe.objective).__module__ == "my_rule"
    assert (
        load_recipe(f"{tmp_path}/deep/down/my_rule.py:Mine").objective
        == load_recipe("deep/down/my_rule.py:Mine").objective
    )


def test_by_path_and_by_module_it_is_one_class() -> None:
    write("my_rule.py")
    by_path, by_module = (type(load_recipe(f"{s}:Mine").objective) for s in ("my_rule.py", "my_rule"))
    assert by_path is by_module


@pytest.mark.parametrize("decorator", ["", '@etr.register("my_registered_rule")'])
def test_what_is_written_down_is_found_again_from_another_folder(decorator: str, tmp_path: Path) -> None:
    recipe = load_recipe(write("deep/my_rule.py", decorator))
    assert recipe_from_dict(recipe.as_dict(), "x", "here") == recipe
    code = (
        "import json, sys; from etr.recipe import recipe_from_dict; "
        "print(recipe_from_dict(json.loads(sys.argv[1]), 'x', 'there').objective.eps_high)"
    )
    command = [sys.executable, "-c", code, json.dumps(recipe.as_dict())]
    assert subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.strip() == "0.35"


def test_a_file_named_like_another_module_hides_nothing() -> None:
    for place in ("json.py", "colorsys.py", "one/rule.py", "two/rule.py"):
        recipe = load_recipe(write(place))
        assert recipe.objective.eps_high == 0.35  # type: ignore[attr-defined]
    import colorsys
    import json as library

    assert library.dumps([]) == "[]" and colorsys.rgb_to_hls(0, 0, 0) == (0, 0, 0)
    one, two = (type(load_recipe(f"{n}/rule.py:Mine").objective) for n in ("one", "two"))
    assert one is not two and one.__module__ == "rule" and two.__module__.startswith("rule_")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py:Mine", "recipe nowhere.py:Mine: there is no file 'nowhere.py'; check the path"),
        ("rule.py:Mien", "recipe rule.py:Mien: unknown name 'Mien'; did you mean 'Mine'? Valid: Mine"),
        ("typo.py:Mine", "recipe typo.py:Mine: line 3 of "),
        ("needy.py:Mine", "needy.py itself needs 'no_such_package', which is not installed"),
        ("clash.py:Mine", "recipe clash.py:Mine: objective 'grpo' is already registered by etr.objectives.grpo.GRPO;"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, message: str) -> None:
    write("rule.py")
    write("needy.py", extra="import no_such_package\n")
    write("clash.py", '@etr.register("grpo")')
    Path("typo.py").write_text("\n\ndef broken(:\n")
    with pytest.raises(InputError) as error:
        load_recipe(text)
    assert message in str(error.value)
    assert not {"typo", "needy", "clash"} & set(sys.modules)  # a second try starts afresh


@pytest.mark.parametrize("source", ["mistaken.py", "mistaken"])
@pytest.mark.parametrize(
    ("mistake", "where", "parts"),
    [
        (
            "@dataclass\nclass His(GRPO):\n    pass\n",
            "@dataclass",
            ["TypeError", "non-frozen", "write @dataclass(frozen=True)"],
        ),
        (
            "@dataclass(frozen=True)\nclass His(GRPO):\n    x: list = []\n",
            "@dataclass(frozen=True)",
            ["ValueError: mutable"],
        ),
        ("from etr import no_such_thing\n", "from etr import no_such_thing", ["ImportError: cannot import name"]),
        ("x = GRPPO\n", "x = GRPPO", ["NameError: name 'GRPPO' is not defined"]),
        ("import etr\nx = etr.regions.fixd\n", "x = etr.regions.fixd", ["AttributeError", "fixd", "mend the file"]),
    ],
)
def test_a_mistake_in_the_file_is_shown_at_its_line(source: str, mistake: str, where: str, parts: list[str]) -> None:
    write("mistaken.py", extra=mistake)
    lines = Path("mistaken.py").read_text().splitlines()
    wrong = max(n for n, line in enumerate(lines, 1) if line == where)
    with pytest.raises(InputError) as error:
        load_recipe(f"{source}:Mine")
    said = str(error.value)
    assert said.startswith(f"recipe {source}:Mine: ") and f"mistaken.py' line {wrong} fails (" in said
    assert all(part in said for part in parts) and "module name" not in said
    assert "mistaken" not in sys.modules


@pytest.mark.parametrize("text", [":Mine", ".relative:Mine"])
def test_what_is_no_module_name_is_said(text: str) -> None:
    with pytest.raises(InputError, match="is no module name"):
        load_recipe(text)


def test_an_error_of_the_file_itself_keeps_its_traceback() -> None:
    write("buggy.py", extra="1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_recipe("buggy.py:Mine")
