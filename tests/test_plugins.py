"""Plugins: other packages bring names, and their mistakes stay theirs. The packages are real to importlib.metadata."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import pytest
from plugin_packages import ENGINE, ENVIRONMENT, OBJECTIVE, TASK, Install, forgotten  # noqa: F401  (the fixture `install`)

import etr
import toy_envs
from etr import laws, plugins, registry
from etr.cli import main
from etr.errors import InputError
from etr.llm import extensions
from etr.objectives.grpo import GRPO
from etr.recipe import load_recipe
from etr.toy.compare import load_env


def states() -> dict[str, str]:
    return {plugin.package: plugin.state for plugin in plugins.load()}


# Found, and loaded when needed ---------------------------------------------------------------------------------


def test_a_plugin_is_imported_when_a_name_is_not_ours_and_not_before(install: Install, tmp_path: Path) -> None:
    install("a-rule", "import pathlib\npathlib.Path('imported').touch()\n" + OBJECTIVE.format(name="a_rule"))
    path = os.pathsep.join([str(tmp_path), str(Path(etr.__file__).parent.parent)])
    environment = {k: v for k, v in os.environ.items() if k != plugins.VARIABLE} | {"PYTHONPATH": path}

    def imports(code: str) -> bool:
        (tmp_path / "imported").unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        return (tmp_path / "imported").exists()

    ours = "import etr, toy_envs; from etr.toy.compare import load_env; etr.get('etr'); load_env('bandit')"
    assert not imports(f"{ours}; import sys; assert 'toy_envs' in sys.modules")
    assert imports("import etr; assert etr.get('a_rule').eps_low == 0.1")


def test_an_objective_is_one_of_ours_by_name(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("a-rule", OBJECTIVE.format(name="a_rule"))
    assert load_recipe("a_rule").objective == etr.get("a_rule") and "a_rule" in etr.list_objectives()
    assert laws.check_law("on_policy", etr.get("a_rule")).outcome == "holds"
    assert plugins.origin(type(etr.get("a_rule"))) == "a-rule 2.5" and plugins.origin(GRPO) == "etr"
    assert main(["list", "--paper", "A rule"]) == 0
    shown = capsys.readouterr().out
    assert "a-rule 2.5" in shown and "A rule [x]" in shown and "from" in shown
    assert main(["list", "--paper", "DAPO"]) == 0 and "from" not in capsys.readouterr().out
    assert main(["show", "a_rule"]) == 0 and "(a_rule, from a-rule 2.5)" in capsys.readouterr().out


def test_an_environment_by_name(install: Install) -> None:
    install("a-world", ENVIRONMENT.format(name="a-world", cls="World"))
    assert load_env("a-world").optimal_value == 1.0  # the typical preset
    assert toy_envs.list_envs("a-world") == ["a-world-small", "a-world-large"]
    assert toy_envs.make_model("a-world-small").uniform_value == 0.25
    assert gymnasium.make("a_world/World-small-v0").unwrapped.spec is not None
    with pytest.raises(InputError, match="unknown environment 'a-wrld'; did you mean 'a-world'"):
        load_env("a-wrld")


def test_a_task_by_name(install: Install) -> None:
    from etr.llm.tasks import load_task

    install("a-task", TASK.format(name="a-task"))
    task = load_task("a-task", seed=7, config={"last": 4})
    assert [item.question for item in task.items] == ["7:0", "7:1", "7:2", "7:3"]  # it ends, although items does not
    assert [task.reward(task.items[2], text) for text in ("2", "3")] == [0.5, 0.0]
    assert task.scorer == "a_task:half"  # what another process imports
    with pytest.raises(InputError, match="unknown option of task 'a-task': 'lst'; did you mean 'last'"):
        load_task("a-task", config={"lst": 4})
    with pytest.raises(InputError, match="unknown task 'a-tsk'; did you mean 'a-task'"):
        load_task("a-tsk")


def test_what_is_brought_is_listed(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("all-four", "".join([
        OBJECTIVE.format(name="one"), ENVIRONMENT.format(name="two", cls="Two"),
        TASK.format(name="thr-ee"), ENGINE.format(name="four"),
    ]))  # fmt: skip
    install("broken", "import a_module_that_is_not_there")
    with pytest.warns(plugins.PluginWarning):
        assert main(["plugins"]) == 0
    shown = capsys.readouterr().out
    assert "all-four 2.5" in shown and "objective one, environment two, task thr-ee, engine four" in shown
    assert "failed" in shown and "No module named 'a_module_that_is_not_there'" in shown


# Mistakes of others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "what"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('stop')", "SystemExit: stop"),
        (OBJECTIVE.format(name="etr"), "objective 'etr' is already registered by etr.objectives.etr.ETR"),
    ],
)
def test_a_failing_plugin_is_one_warning_and_brings_nothing(install: Install, end: str, what: str) -> None:
    parts = (OBJECTIVE.format(name="half"), ENVIRONMENT.format(name="half", cls="Half"), TASK.format(name="ha-lf"))
    install("broken", "".join(parts) + end)
    install("fine", OBJECTIVE.format(name="fine"))
    with pytest.warns(plugins.PluginWarning) as caught:
        assert etr.get("fine").name == "fine"
    assert len(caught) == 1
    message = str(caught[0].message)
    assert what in message and "plugin 'broken' of package broken 2.5 is left out" in message
    assert "half" not in registry._OBJECTIVES and "half" not in toy_envs.FAMILIES and "ha-lf" not in extensions.TASKS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert states() == {"broken": "failed", "fine": "loaded"}


@pytest.mark.parametrize(
    "source",
    [OBJECTIVE.format(name="mine"), ENVIRONMENT.format(name="mine", cls="Mine"), TASK.format(name="mi-ne"),
     ENGINE.format(name="mine")],
)  # fmt: skip
def test_a_name_twice_is_refused_naming_both(install: Install, source: str) -> None:
    install("first-one", source)
    install("second-one", source)
    with pytest.warns(plugins.PluginWarning, match=r"'second_one' of package second-one 2\.5 .* first_one\."):
        assert states() == {"first-one": "loaded", "second-one": "failed"}


def test_an_entry_that_names_no_module(install: Install) -> None:
    install("odd", "", entry="no such module!")
    with pytest.warns(plugins.PluginWarning, match="package odd"):
        assert states() == {"odd": "failed"}


def test_a_plugin_may_look_names_up_while_it_is_imported(install: Install) -> None:
    install("curious", "import etr\nassert 'grpo' in etr.list_objectives()\n" + OBJECTIVE.format(name="curious"))
    assert etr.get("curious").name == "curious" and states() == {"curious": "loaded"}


def test_two_plugins_below_one_name_keep_apart(install: Install, tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / "shared" / part).mkdir(parents=True)
        (tmp_path / "shared" / part / "__init__.py").write_text(OBJECTIVE.format(name=part))
        install(f"shared-{part}", "", entry=f"shared.{part}")
    assert [plugins.brought(plugin) for plugin in plugins.load()] == [[("objective", "one")], [("objective", "two")]]


# ETR_PLUGINS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "loaded"),
    [("", {"a-one", "b-two"}), ("none", set()), ("a_one", {"a-one"}), ("b-two", {"b-two"}),
     ("a_one, b_two", {"a-one", "b-two"})],
)  # fmt: skip
def test_the_variable_limits_them(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str, loaded: set[str]
) -> None:
    install("a-one", OBJECTIVE.format(name="one"))
    install("b-two", OBJECTIVE.format(name="two"))
    monkeypatch.setenv(plugins.VARIABLE, value)
    assert {name for name, state in states().items() if state == "loaded"} == loaded
    assert {"one", "two"} & set(etr.list_objectives()) == {name[2:] for name in loaded}


def test_the_variable_names_what_is_not_there(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("a-one", OBJECTIVE.format(name="one"))
    monkeypatch.setenv(plugins.VARIABLE, "a-on")
    with pytest.raises(InputError, match="unknown plugin in ETR_PLUGINS: 'a-on'; did you mean 'a-one'"):
        etr.list_objectives()
