"""Our rewards as verl's custom reward function, found by the path that a launch script gives."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from etr.adapters.verl import rewards
from etr.adapters.verl.rewards import compute_score
from etr.errors import InputError
from etr.llm.rewards.pool import Pool


@pytest.fixture(scope="module", autouse=True)
def no_graders_left():
    """A worker of verl keeps its graders to its end, and this process has other tests to run."""
    started, patch = [], pytest.MonkeyPatch()
    patch.setattr(rewards, "Pool", lambda *settings: started.append(Pool(*settings)) or started[-1])
    yield
    patch.undo()
    rewards._grade.cache_clear()
    for pool in started:
        pool.close()


def test_an_answer_is_graded_by_its_rows_scorer():
    assert compute_score("sums", "The answer is 12.", "12", {"scorer": "text"}) == 1.0
    assert compute_score("sums", "The answer is 13.", "12", {"scorer": "text"}) == 0.0
    assert compute_score("sums", "12.", "12", {"scorer": "exact"}, reward_router_address="unused") == 0.0


def test_a_users_own_function_gets_prompt_answer_and_completion(tmp_path: Path):
    own = tmp_path / "my_reward.py"
    own.write_text(
        "def graded(prompt, completion, answer):\n    return 0.5 * (prompt == 'Q') + 0.25 * (completion == answer)\n"
    )
    info = {"scorer": f"{own}:graded", "question": "Q"}
    assert compute_score("own", "7", "7", info) == 0.75
    assert compute_score("own", "8", "7", info) == 0.5


def test_a_failing_reward_counts_nothing_and_a_wrong_one_is_refused(tmp_path: Path):
    own = tmp_path / "bad_reward.py"
    own.write_text("def fails(p, c, a):\n    raise ValueError('no')\ndef text(p, c, a):\n    return 'right'\n")
    with pytest.warns(UserWarning, match=r"failed .*ValueError: no"):
        assert compute_score("own", "7", "7", {"scorer": f"{own}:fails"}) == 0.0
    with pytest.raises(InputError, match=r"returned 'right'"):
        compute_score("own", "7", "7", {"scorer": f"{own}:text"})


def test_a_row_without_a_scorer_is_refused():
    with pytest.raises(InputError, match=r"a row of 'gsm8k' has no extra_info.scorer"):
        compute_score("gsm8k", "7", "7", {"index": 0})


def test_reasoning_gym_grades_by_its_own_entry():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    import reasoning_gym

    entry = reasoning_gym.create_dataset("basic_arithmetic", seed=1, size=1)[0]
    info = {"scorer": "reasoning-gym:basic_arithmetic:{}", "entry": json.dumps(entry)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compute_score("gym", f"<answer>{entry['answer']}</answer>", entry["answer"], info) == 1.0


def test_verl_finds_it():
    imports = pytest.importorskip("verl.utils.import_utils", reason="verl is not installed (make adapters)")
    found = imports.load_extern_object("pkg://etr.adapters.verl.rewards", "compute_score")
    assert found(data_source="sums", solution_str="12", ground_truth="12", extra_info={"scorer": "exact"}) == 1.0
