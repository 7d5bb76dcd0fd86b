"""What the LLM trainer supplies beyond log-probs, and how it reads it: likeliest tokens, final answers, templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llm_rollouts import made_rollout
from llm_runs import recipe, trainer

import etr
from etr.diagnostics import METRICS
from etr.errors import InputError
from etr.llm.completions import check_log_probs
from etr.llm.data.templates import asked, load_templates
from etr.llm.items import Item, user
from etr.llm.models import tiny_model
from etr.llm.policy import PACKINGS, Policy
from etr.llm.rewards.clusters import clusters
from etr.llm.train import SUPPLIES

ROWS = slice(0, 12)


@pytest.mark.parametrize("packing", PACKINGS)
def test_likeliest_tokens_are_those_of_the_whole_distribution(packing: str) -> None:
    """Against the model's own logits of the unpacked sequences."""
    lm, rollout = tiny_model(), made_rollout()
    policy = Policy(lm, temperature=0.7, packing=packing)
    with torch.no_grad():
        found = policy.columns(rollout, ROWS, {"top_log_probs"}, top=3)
        for row in range(12):
            ids = rollout.sequences[row][rollout.attention_mask[row].bool()][None]
            logits = lm.model(input_ids=ids).logits[0, :, : policy.vocabulary].float() / 0.7
            length = int(rollout.attention_mask[row, rollout.prompt_width :].sum())
            want = logits.log_softmax(-1)[-length - 1 : -1].topk(3)
            torch.testing.assert_close(found["top_log_probs"][row, :length], want.values, rtol=1e-4, atol=1e-5)
            assert (found["top_tokens"][row, length:] == 0).all() and (found["top_log_probs"][row, length:] == 0).all()
            same = found["top_tokens"][row, :length] == want.indices
            assert same.float().mean() > 0.9  # rounding may order two equally likely tokens either way


def test_the_same_tokens_are_read_again_after_an_update() -> None:
    """With the ids of the old policy the new log-probs are those of these ids, not of the new likeliest."""
    lm, rollout = tiny_model(), made_rollout()
    policy = Policy(lm)
    with torch.no_grad():
        old = policy.columns(rollout, ROWS, {"top_log_probs"}, top=4)
        lm.model.get_output_embeddings().weight.add_(0.5 * torch.randn_like(lm.model.get_output_embeddings().weight))
        new = policy.columns(rollout, slice(3, 6), {"top_log_probs"}, top=old["top_tokens"])
        fresh = policy.columns(rollout, slice(3, 6), {"top_log_probs"}, top=4)
    assert torch.equal(new["top_tokens"], old["top_tokens"][3:6])
    assert not torch.equal(fresh["top_tokens"], new["top_tokens"])
    both = (fresh["top_tokens"] == new["top_tokens"]) & (new["top_log_probs"] != 0)
    torch.testing.assert_close(fresh["top_log_probs"][both], new["top_log_probs"][both])


def test_entropy_is_left_out_where_nobody_asks() -> None:
    policy, rollout = Policy(tiny_model()), made_rollout()
    found = policy.columns(rollout, ROWS, ())
    assert list(found) == ["log_probs"] and found["log_probs"].requires_grad
    torch.testing.assert_close(found["log_probs"], policy.log_probs(rollout, ROWS)[0], rtol=0, atol=0)


def test_final_answers_are_clusters() -> None:
    texts = ["The answer is 12.", "12.0", r"\boxed{12}", "so it is 7", "no idea", "still none"]
    found = clusters(texts).tolist()
    assert found[0] == found[1] == found[2] != found[3]
    assert len(set(found[3:])) == 3  # without an answer each is alone


NAMES = [
    "dppo_tv",
    "capo",
    "seed_grpo",
    "empg",
    "gtpo",
    "entropy_bonus",
    "gdpo",
    "passk",
    "clip_cov",
    "adaptive_entropy",
]


@pytest.mark.parametrize("name", NAMES)
def test_methods_of_the_library_train_a_language_model(name: str) -> None:
    fields = {"kind": "topk"} if name == "dppo_tv" else {}
    with trainer(recipe(name, **fields, **{"optimizer.updates": 2, "optimizer.lr": 1e-3})) as run:
        rows = [run.step(step) for step in (1, 2)]
    assert all(torch.isfinite(torch.tensor(row["grad_norm"])) for row in rows)


@pytest.mark.parametrize("name", ["mdpo", "tppo", "oar", "ghpo", "adaptive_temperature"])
def test_what_a_language_model_cannot_supply_is_refused_at_the_start(name: str) -> None:
    missing = sorted(etr.get(name).needs - set(SUPPLIES))
    assert missing
    with pytest.raises(InputError, match=f"objective '{name}' needs .* which the LLM trainer does not have"):
        trainer(recipe(name))


def test_the_observatory_pass_can_be_left_out() -> None:
    with trainer(recipe("grpo"), observe_every=2) as run:
        rows = [run.step(step) for step in (1, 2)]
    extra = set(rows[1]) - set(rows[0])
    assert set(rows[0]) < set(rows[1]) and extra and extra <= set(METRICS)
    assert {"entropy", "reward", "kl"} <= set(rows[0])


# Templates ------------------------------------------------------------------------------------------------------------


def test_templates_are_drawn_by_seed_step_and_prompt(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("Solve: {question}\n\n{question} Think first.\n")
    templates, item = load_templates(str(path)), Item(user("1 + 1?"), "2")
    texts = [asked(item, templates, 0, step, number).text for step in range(20) for number in range(5)]
    assert set(texts) == {"Solve: 1 + 1?", "1 + 1? Think first."}
    assert 30 < texts.count("Solve: 1 + 1?") < 70
    assert texts == [asked(item, templates, 0, step, number).text for step in range(20) for number in range(5)]
    assert asked(item, templates, 0, 1, 1).question == "1 + 1?"  # still the same item
    assert asked(item, (), 0, 1, 1) is item and load_templates("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [("Solve this.\n", "line 1 of .* needs {question} exactly once"), ("\n", "holds none; write one template a line")],
)
def test_a_bad_file_of_templates(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "templates.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_templates(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        load_templates(str(tmp_path / "missing.txt"))


def test_the_trainer_asks_in_templates(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("{question} {question}\n".replace(" {question}", " now"))
    with trainer(recipe("grpo"), templates=str(path)) as run, trainer(recipe("grpo")) as plain:
        longer, shorter = (one.collector.collect(1).rollout.prompt_width for one in (run, plain))
    assert longer > shorter


# Compiled layers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers_and_the_same_run() -> None:
    settings = recipe("grpo", **{"optimizer.updates": 2, "optimizer.lr": 1e-3})
    with trainer(settings) as plain, trainer(settings, compile_layers=True) as fast:
        check_log_probs(fast.language_model.model)
        for step in (1, 2):
            a, b = plain.step(step), fast.step(step)
            for name in ("reward", "length", "grad_norm", "entropy"):
                assert b[name] == pytest.approx(a[name], rel=1e-3), (step, name)


def test_compiled_layers_refuse_what_they_do_not_go_with() -> None:
    with pytest.raises(InputError, match="compile_layers does not go together with gradient_checkpointing; switch it"):
        trainer(recipe("grpo"), compile_layers=True, gradient_checkpointing=True)
