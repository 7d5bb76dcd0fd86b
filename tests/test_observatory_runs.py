"""The observatory at work: what a toy run records, what `etr observe` reads and says, and what its pictures show."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from torch import Generator, Tensor

import etr
from etr import exact
from etr.cli.observe import observe, read_log
from etr.diagnostics import METRICS
from etr.errors import InputError
from etr.observatory import Alarm
from etr.plots import caption
from etr.plots.alarms import alarm_curves
from etr.plots.observatory import (
    BY_PROBABILITY,
    BY_SIGN,
    entropy_budget,
    prediction_scatter,
    width_and_occupancy,
)
from etr.recipe import load_recipe
from etr.runs import RunFolder
from etr.toy.compare import curve_rows
from etr.toy.recorder import History, Recorder
from etr.toy.rollout import rollout, taken_log_probs
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

Text = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide_and_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wide terminal, so that tables do not wrap, and a folder of its own for every test."""
    monkeypatch.setattr("etr.cli.options.console._width", 250)
    monkeypatch.chdir(tmp_path)


def recorded(env: str, recipe: str = "grpo", observing: bool = True, measurements: int = 3) -> tuple[History, Tensor]:
    """A recorder fed with random moves of the policy, and the entropies of all policies, `[seeds, moves + 1]`."""
    model, loaded = make_model(env), load_recipe(recipe)
    generator = Generator().manual_seed(0)
    recorder = Recorder(loaded, model, observing)
    logits = torch.zeros(2, model.prompts, model.states, model.vocab_size, dtype=torch.float64)
    entropies = [exact.entropy(logits, model).mean(-1)]
    for step in range(1, measurements + 1):
        draw = torch.rand(2, model.prompts, 4, model.horizon + 1, generator=generator, dtype=torch.float64)
        batch, index = rollout(loaded, model, logits, draw)
        batch, _ = loaded.objective.prepare(batch, loaded.objective.init_state((2,), logits.device))
        new = logits + 0.5 * torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        part = dataclasses.replace(batch, log_probs=taken_log_probs(new, index))
        recorder.observe(part, etr.policy_loss(loaded.objective, part, check=False))
        recorder.measure(step, new, logits, batch, index)
        logits = new
        entropies.append(exact.entropy(logits, model).mean(-1))
    return recorder.history(logits), torch.stack(entropies, -1)


# Recorder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["grpo", "etr", "gspo", "grpo_wide"])
@pytest.mark.parametrize("env", ["bandit-spread", "tree-easy"])
def test_a_recorded_budget_is_the_entropy_of_the_run(env: str, recipe: str) -> None:
    history, entropy = recorded(env, recipe)
    curves = history.curves
    torch.testing.assert_close(curves["entropy/change"] + curves["entropy/visits"], entropy.diff(dim=-1))
    for parts in (BY_SIGN, BY_PROBABILITY):
        torch.testing.assert_close(sum(curves[name] for name in parts), entropy.diff(dim=-1))
    torch.testing.assert_close(
        sum(curves[f"region/{side}"] for side in ("below", "inside", "above")), torch.ones(2, 3).double()
    )
    if env.startswith("bandit"):  # one state: all of KL(new ‖ old) is what the covariance law leaves out
        torch.testing.assert_close(curves["entropy/predicted"] - curves["entropy/change"], curves["kl_new_to_old"])


def test_every_curve_has_a_meaning_and_observing_changes_no_other() -> None:
    quiet, loud = (recorded("tree-easy", observing=observing)[0].curves for observing in (False, True))
    assert set(loud) <= set(METRICS) and len(loud) > len(quiet) + 20
    for name, curve in quiet.items():
        assert torch.equal(curve.nan_to_num(), loud[name].nan_to_num())
    reward = recorded("bandit-spread", measurements=1)[0]
    chance = exact.expected_reward(reward.logits, make_model("bandit-spread"))
    want = [1 - (1 - p) ** 4 for p in chance[0].tolist()]
    assert reward.curves["pass@4"][0, 0].item() == pytest.approx(sum(want) / len(want))


@pytest.mark.parametrize("recipe", ["grpo", "grpo_wide"])
def test_the_recorded_signal_is_that_of_the_first_update(recipe: str) -> None:
    """Signal plus noise is |g|² at the sampling policy: here by autograd through the table, there in closed form."""
    model, loaded = make_model("tree-easy"), load_recipe(recipe)
    rng = Generator().manual_seed(2)
    logits = torch.randn(2, model.prompts, model.states, 3, generator=rng, dtype=torch.float64)
    draw = torch.rand(2, model.prompts, 4, model.horizon + 1, generator=rng, dtype=torch.float64)
    batch, index = rollout(loaded, model, logits, draw)
    batch, _ = loaded.objective.prepare(batch, loaded.objective.init_state((2,), logits.device))
    leaf = logits.clone().requires_grad_()
    part = dataclasses.replace(batch, log_probs=taken_log_probs(leaf, index))
    out = etr.policy_loss(loaded.objective, part, check=False)
    (gradient,) = torch.autograd.grad(out.loss.sum(), leaf)
    recorder = Recorder(loaded, model, observe=True)
    recorder.observe(batch, out)
    recorder.measure(1, logits + torch.randn(logits.shape, generator=rng), logits, batch, index)
    curves = recorder.history(logits).curves
    total = (curves["gradient/signal"] + curves["gradient/noise"])[:, 0]
    torch.testing.assert_close(total, gradient.flatten(1).square().sum(-1))
    assert (curves["gradient/noise"] > 0).all()


def test_groups_of_one_have_no_signal_to_tell() -> None:
    model = make_model("bandit-spread")
    recorder = Recorder(load_recipe("grpo"), model, observe=True)
    index = torch.zeros(2, model.prompts, 1, 1, dtype=torch.long)
    old = torch.zeros(2, model.prompts, 1, model.vocab_size)
    zeros = torch.zeros(2, model.prompts, 1)
    batch = etr.Batch(zeros, zeros, torch.ones_like(zeros, dtype=torch.bool), torch.ones(2, model.prompts))
    assert all(value.isnan().all() for value in recorder._signal(old, batch, index).values())


def test_a_toy_run_observes_when_asked() -> None:
    """From training itself: the parts of all updates add up to the whole fall of entropy."""
    model = make_model("tree-easy")
    config = ToyConfig(iterations=6, group_size=4, seeds=2, metrics_every=1, observe=True)
    curves = train(load_recipe("etr"), model, config).curves
    spent = (curves["entropy/change"] + curves["entropy/visits"]).sum(-1)
    torch.testing.assert_close(math.log(model.vocab_size) + spent, curves["entropy"][:, -1])


# etr observe ------------------------------------------------------------------------------------------------------


def say(capsys: Text, *args: object) -> str:
    observe(*args)  # type: ignore[arg-type]
    return " ".join(capsys.readouterr().out.split())


def test_a_toy_run_folder(capsys: Text) -> None:
    histories = {"tree-easy": {recipe: recorded("tree-easy", recipe)[0] for recipe in ("etr", "grpo")}}
    with RunFolder.create(Path("here"), {"kind": "compare"}) as folder:
        for step, row in curve_rows(histories):
            folder.log(step, row)
    out = say(capsys, Path("here"))
    assert "tree-easy/etr" in out and "tree-easy/grpo" in out and "ESS / N" in out
    pictures = {path.name for path in Path("here/figures").glob("*.png")}
    assert {f"{kind}-tree-easy-{recipe}.png" for recipe in ("etr", "grpo") for kind in ("alarms", "region")} < pictures
    assert "entropy-budget-by-probability-tree-easy-etr.png" in pictures and len(pictures) == 10


def test_a_run_of_a_language_model(capsys: Text) -> None:
    with RunFolder.create(Path("llm"), {"kind": "train"}) as folder:
        for step in range(1, 5):
            folder.log(step, {"reward": 0.1 * step, "entropy": 1.0, "region/zero_grad_frac": 0.25})
    out = say(capsys, Path("llm"))
    assert "No alarm." in out and "1 → 1" in out and "0.1 → 0.4" in out and "0.250" in out and "dead groups" not in out
    assert [path.name for path in Path("llm/figures").glob("*.png")] == ["alarms-llm.png"]


def write_csv(path: Path, **columns: Sequence[object]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_a_csv_of_somebody_else(capsys: Text) -> None:
    n = 50
    log = write_csv(
        Path("log.csv"),
        global_step=list(range(1, n + 1)),
        entropy_avg=[0.5 + 0.2 * i for i in range(n)],
        reward_avg=[0.5] * n,
        adv_std=[0.0] * 30 + [1.0] * 20,
        note=["text"] * n,
    )
    out = say(capsys, log, 151_936, Path("out"))
    assert "explosion" in out and "% of ln V" in out and "dead groups" in out and "0.600" in out
    assert Path("out/alarms-log.png").read_bytes().startswith(b"\x89PNG")
    captions = json.loads(Path("out/captions.json").read_text())
    assert "explosion at step" in captions["alarms-log.png"]


def test_a_jsonl_with_gaps_a_restart_and_a_cut_off_line() -> None:
    rows = [{"training/global_step": i, "critic/score/mean": 0.1 * i} for i in (1, 2, 3, 2, 3, 4)]
    rows[1]["actor/entropy"], rows[3]["actor/entropy"] = 2.0, 1.0  # logged now and then only
    rows[4]["critic/score/mean"] = 7.0  # step 3 after the restart
    Path("verl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"training/glob')
    columns = read_log(Path("verl.jsonl"))["verl"]
    assert columns["step"] == [1, 2, 3, 4]
    assert columns["entropy"] == [2.0, 1.0, 1.0, 1.0]
    assert columns["reward"] == pytest.approx([0.1, 0.2, 7.0, 0.4])


def test_null_is_not_a_number_and_rings(capsys: Text) -> None:
    Path("metrics.jsonl").write_text('{"step": 1, "entropy": 1.0}\n{"step": 2, "entropy": null}\n')
    assert "not a number (step 2): entropy is nan" in say(capsys, Path("metrics.jsonl"), None, Path("out"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.csv", None, "cannot read 'missing.csv'"),
        ("a.csv", "step,loss\n1,2\n", "needs a whole-number step"),
        ("b.csv", "entropy,reward\n1,2\n", "it has entropy, reward"),
        ("c.csv", "", "it has no numbers"),
        ("d.csv", "step,entropy\nx,1\n2,1\n", "whole-number step"),
        ("e.jsonl", '[1]\n{"step": 1}\n', "line 1 is not a row"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(name: str, text: str | None, message: str) -> None:
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(InputError, match=message):
        observe(Path(name))


def test_a_vocabulary_has_two_tokens() -> None:
    with pytest.raises(InputError, match="vocab_size is 1"):
        observe(Path("x.csv"), 1)


# Pictures ---------------------------------------------------------------------------------------------------------


def test_a_budget_stacks_its_parts_and_adds_them_up() -> None:
    steps = list(range(1, 121))  # grouped by three
    curves = {key: torch.randn(4, 120, generator=Generator().manual_seed(i)) for i, key in enumerate(BY_SIGN)}
    curves["entropy/visits"] = torch.zeros(4, 120)
    left, right = entropy_budget(curves, steps).axes
    drawn = [key for key in BY_SIGN if key != "entropy/visits"]  # zero throughout: left out
    means = torch.stack([curves[key].double().mean(0) for key in drawn])
    bars = [bar for bar in left.patches if isinstance(bar, Rectangle)]
    assert len(bars) == len(drawn) * 40
    heights = np.array([bar.get_height() for bar in bars]).reshape(len(drawn), 40)
    assert heights == pytest.approx(means.unflatten(-1, (40, 3)).sum(-1).numpy(), abs=1e-6)
    tops = [[bar.get_y() + bar.get_height() for bar in bars[i::40]] for i in range(40)]
    for i in range(40):
        column = heights[:, i]
        assert max(0, *tops[i]) == pytest.approx(column[column > 0].sum(), abs=1e-6)
        assert min(0, *tops[i]) == pytest.approx(column[column < 0].sum(), abs=1e-6)
    (total,) = [line for line in right.lines if line.get_label() == "all"]
    assert total.get_ydata()[-1] == pytest.approx(float(means.sum()), abs=1e-6)  # type: ignore[index]
    assert "n = 4 seeds" in caption(left.figure) and "3 measured updates" in caption(left.figure)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="observe"):
        entropy_budget({"reward": torch.zeros(2, 3)}, [1, 2, 3])


def test_a_budget_of_samples_is_drawn_beside_entropy_itself() -> None:
    entropy = torch.tensor([[1.0, 0.8, 0.7]])
    sampled = {"entropy": entropy, "entropy/change_pos": torch.full((1, 3), -0.3)}
    for exactly, want in ((torch.zeros(1, 3), 1), (torch.ones(1, 3), 0)):
        figure = entropy_budget({**sampled, "entropy/change_unsampled": exactly}, [1, 2, 3])
        beside = [line for line in figure.axes[1].lines if line.get_label() == "entropy"]
        assert len(beside) == want and ("overstate" in caption(figure)) == bool(want)
        for line in beside:
            assert line.get_ydata() == pytest.approx(np.array([0.0, -0.2, -0.3]))


def test_the_scatter_shows_every_update_and_the_line_of_equality() -> None:
    x = torch.tensor([[-0.1, -0.01, 0.0], [0.002, -0.5, -0.03]], dtype=torch.float64)
    axes = prediction_scatter(x, x - 0.01).axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    assert points[:, 1] == pytest.approx(points[:, 0] - 0.01) and len(points) == 6
    (line,) = axes.lines
    assert np.array_equal(line.get_xdata(), line.get_ydata())
    assert prediction_scatter(torch.zeros(1, 2), torch.zeros(1, 2)).axes
    with pytest.raises(InputError, match="seeds, steps"):
        prediction_scatter(x, x[:1])


def test_width_and_share_outside_are_means_over_steps() -> None:
    curves = recorded("bandit-spread", "etr")[0].curves
    left, right = width_and_occupancy({"etr": curves}).axes
    for axes, metric in ((left, "width"), (right, "outside")):
        want = [curves[f"region/{metric}/p{b}"].nanmean(-1).nanmean().item() for b in ("0.1-0.3", "0.3-0.5")]
        (stairs,) = axes.patches
        assert stairs.get_data().values[1:3].tolist() == pytest.approx(want)  # type: ignore[attr-defined]
    for wrong in ({}, {"etr": {"reward": torch.zeros(2, 3)}}):
        with pytest.raises(InputError):
            width_and_occupancy(wrong)


def test_alarms_are_lines_with_numbers_and_sentences() -> None:
    rung = [Alarm(2, "collapse", "entropy fell"), Alarm(3, "dead groups", "95% of the responses")]
    figure = alarm_curves([1, 2, 3], {"entropy": [1.0, 0.1, 0.1], "reward": [0.0, 0.5, math.nan]}, rung, "run")
    top, bottom = figure.axes
    assert [line.get_xdata()[0] for line in bottom.lines[2:]] == [2, 3]  # type: ignore[index]
    assert [text.get_text() for text in top.texts] == ["1", "2"]
    assert "(2) dead groups at step 3: 95% of the responses." in caption(figure)
    with pytest.raises(InputError, match="no curve"):
        alarm_curves([1], {}, [])
