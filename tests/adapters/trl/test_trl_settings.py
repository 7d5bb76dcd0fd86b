"""What needs no TRL: the arguments that follow from a recipe, rewards, the engine's guard, state in a checkpoint."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import etr
from etr.adapters import trl_settings
from etr.adapters.trl import start, watch
from etr.adapters.trl.columns import pack, unpack
from etr.adapters.trl.guard import check_trainer
from etr.adapters.trl.main import main, one_scorer, read_settings
from etr.adapters.trl.rewards import TaskReward
from etr.adapters.trl.state import load_state, save_state
from etr.adapters.trl.whole import check_engine, total_rewards
from etr.errors import InputError
from etr.recipe import load_recipe


def test_arguments_say_what_the_recipe_says() -> None:
    recipe = load_recipe("etr", {"optimizer.updates": 3, "optimizer.lr": 2e-5, "optimizer.max_grad_norm": None})
    found = trl_settings.arguments(recipe)
    assert (found["num_iterations"], found["learning_rate"], found["max_grad_norm"]) == (3, 2e-5, 0.0)
    assert "beta" not in found and not found["vllm_importance_sampling_correction"]
    assert trl_settings.arguments(load_recipe("grpo", {"correction.kind": "tis"}))[
        "vllm_importance_sampling_correction"
    ]
    referred = next(n for n in etr.list_objectives() if "ref_log_probs" in etr.get(n).needs)
    assert trl_settings.arguments(load_recipe(referred))["beta"] == 1.0


def test_recipes_that_trl_cannot_train_are_refused() -> None:
    lacking = [n for n in etr.list_objectives() if etr.get(n).needs - set(trl_settings.SUPPLIES)]
    assert lacking
    for name in lacking:
        with pytest.raises(InputError, match="TRL's GRPOTrainer does not have"):
            trl_settings.arguments(load_recipe(name))
    with pytest.raises(InputError, match="no learning rate"):
        trl_settings.check(load_recipe("grpo", {"optimizer.method": "sgd", "optimizer.lr": None}))


def test_columns_come_back_as_they_went() -> None:
    batch = etr.Batch(
        torch.randn(4, 3), torch.randn(4, 3), torch.ones(4, 3, dtype=torch.bool), torch.randn(4),
        group=etr.group_stats(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])),
        rewards=torch.rand(4), components=torch.rand(4, 3), columns={"b": torch.rand(4), "t": torch.rand(4, 3)},
        ref_log_probs=torch.randn(4, 3), tokens=torch.arange(12).view(4, 3),
    )  # fmt: skip
    packed = pack(batch, slice(1, 3), 2)
    assert packed["etr/components"].shape == (2, 3) and packed["etr/ref_log_probs"].shape == (2, 2)
    theirs = {"completion_mask": torch.tensor([[1, 1], [1, 0]]), "completion_ids": batch.tokens[1:3, :2]}
    found = unpack({**packed, **theirs}, batch.log_probs[1:3, :2], None)
    for name in ("b", "t"):
        assert torch.equal(found.columns[name], batch.columns[name][1:3, ...][..., :2])
    assert torch.equal(found.group.var, batch.group.var[1:3]) and torch.equal(found.rewards, batch.rewards[1:3])
    assert torch.equal(found.old_log_probs, batch.old_log_probs[1:3, :2])
    assert found.response_mask.tolist()[1] == [True, False]
    tools = {**theirs, "tool_mask": torch.tensor([[1, 0], [1, 1]])}
    assert unpack({**packed, **tools}, batch.log_probs[1:3, :2], None).response_mask.tolist()[0] == [True, False]


def test_an_answer_without_any_reward_is_refused() -> None:
    nan = float("nan")
    weights = torch.tensor([1.0, 0.5])
    assert total_rewards(torch.tensor([[1.0, 1.0], [nan, 1.0]]), weights).tolist() == [1.5, 0.5]
    with pytest.raises(InputError, match="1 of 2 answers have no reward"):
        total_rewards(torch.tensor([[1.0, 1.0], [nan, nan]]), weights)


def test_an_engine_with_other_weights_is_noticed() -> None:
    old, mask = torch.full((2, 4), -2.0), torch.ones(2, 4, dtype=torch.bool)
    near = etr.Batch(old, old, mask, torch.ones(2), rollout_log_probs=old + 0.1)
    check_engine(near)
    far = etr.Batch(old, old, mask, torch.ones(2), rollout_log_probs=old - 1.0)
    with pytest.raises(InputError, match=r"1\.00 nats from the trainer's"):
        check_engine(far)


def test_an_engine_is_kept_from_its_first_checkpoint() -> None:
    """A stand-in for vLLM's LLM under TRL up to 1.9, which reloaded the weights from disk after every sync."""
    calls: list[str] = []
    engine = SimpleNamespace(collective_rpc=lambda method, **_: calls.append(method))
    trainer = SimpleNamespace(vllm_generation=SimpleNamespace(llm=engine), tools=None, aux_loss_enabled=False)
    check_trainer(trainer, load_recipe("etr"))
    engine.collective_rpc("sleep")
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": []})
    with pytest.raises(InputError, match="issue 5312"):
        engine.collective_rpc("reload_weights")
    assert calls == ["sleep", "reload_weights"]
    with pytest.raises(InputError, match="router loss"):
        check_trainer(SimpleNamespace(aux_loss_enabled=True), load_recipe("etr"))


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_scaled_loss_is_noticed(factor: float) -> None:
    scale, leaf = watch.Scale(2), torch.tensor(3.0, requires_grad=True)
    (scale.watched(leaf * 2, SimpleNamespace(scaler=None)) * factor).backward()
    if factor == 1.0:
        scale.check()
    else:
        with pytest.raises(InputError, match=r"multiplies the loss by 0\.25"):
            scale.check()


def test_state_is_saved_and_must_be_the_same_objectives(tmp_path: Path) -> None:
    name = next(n for n in etr.list_objectives() if etr.get(n).init_state((), torch.device("cpu")))
    recipe, fresh = load_recipe(name), etr.get(name).init_state((), torch.device("cpu"))
    moved = {key: value + 1 for key, value in fresh.items()}
    save_state(tmp_path, recipe, moved)
    found = load_state(tmp_path, recipe, fresh)
    assert all(torch.equal(found[key], moved[key]) for key in fresh)
    with pytest.raises(InputError, match="resume with the recipe of that run"):
        load_state(tmp_path, load_recipe("grpo"), {"other": torch.zeros(())})
    with pytest.raises(InputError, match="has no etr_state"):
        load_state(tmp_path / "none", recipe, fresh)
    assert load_state(tmp_path / "none", load_recipe("grpo"), {}) == {}


def test_rewards_are_those_of_the_grader() -> None:
    with TaskReward("numeric", workers=1) as reward:
        assert reward.__name__ == "numeric" and reward.bounds == (0.0, 1.0)
        texts = reward(["1+1="] * 2, ["2", "so it is 3"], answer=["2", "2"], trainer_state=None)
        chats = reward(
            [[{"role": "user", "content": "1+1="}]], [[{"role": "assistant", "content": "2.0"}]], answer=["2"]
        )
    assert texts == [1.0, 0.0] and chats == [1.0]


def test_versions_compare_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, wanted in (("1.6.0", "older than 1.7.1"), ("0.29.1", "older than 1.7.1")):
        monkeypatch.setattr(start, "version", lambda _, found=found: found)
        with pytest.raises(InputError, match=wanted):
            start.check_version()

    def missing(_: str) -> str:
        raise PackageNotFoundError("trl")

    monkeypatch.setattr(start, "version", missing)
    with pytest.raises(InputError, match="TRL is not installed; pip install"):
        start.check_version()
    monkeypatch.setattr(start, "version", lambda _: "1.99.0")
    with pytest.warns(UserWarning, match="newer than"):
        start.check_version()


def test_a_trainer_without_the_parts_is_refused() -> None:
    class Changed:
        def _compute_loss(self, batch: object) -> None: ...

    with pytest.raises(InputError, match="a _compute_loss without model, inputs"):
        start.check_parts(Changed)


@pytest.mark.parametrize(
    "content, wanted",
    [
        (None, "cannot read"),
        ("model: [", "cannot read"),
        ("- a", "holds no settings"),
        ("modl: a", "did you mean 'model'"),
        ("model: a\ndataset: b", "has no reward"),
    ],
)
def test_a_broken_folder_is_one_sentence(
    content: str | None, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "trl.yaml").write_text(content)
    with pytest.raises(InputError, match=wanted):
        read_settings(tmp_path)
    assert main([str(tmp_path)]) == 1 and wanted in capsys.readouterr().err
    assert main([]) == 2 and "usage" in capsys.readouterr().err


def test_auto_is_the_scorer_of_all_rows() -> None:
    assert one_scorer("math", []) == "math"
    assert one_scorer("auto", [{"scorer": "exact"}] * 2) == "exact"
    with pytest.raises(InputError, match="exact, math as scorer"):
        one_scorer("auto", [{"scorer": "exact"}, {"scorer": "math"}])
