"""Samples of a run: the tokens' numbers against hand computation, which rows are taken, and their texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch

import etr
from etr.batch import Batch
from etr.groups import group_stats
from etr.llm import samples
from etr.llm.items import Item, user
from etr.llm.models import tiny_model
from etr.llm.rollout import Rollout

pytest.importorskip("transformers")
ITEMS = [Item(user("1+1="), "2"), Item(user("2+2="), "4")]


def case(rewards: list[float], lengths: list[int], width: int = 3) -> tuple[Batch, Rollout, torch.Tensor]:
    """Two groups of half the rewards each; random log-probs, NaN on padding; prompts of two tokens."""
    size, generator = len(rewards), torch.Generator().manual_seed(0)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    old = -torch.rand(size, width, generator=generator) - 0.1
    new = old + 0.6 * torch.randn(size, width, generator=generator)
    grades, ids = torch.tensor(rewards, dtype=torch.float32), torch.arange(2).repeat_interleave(size // 2)
    batch = Batch(
        log_probs=torch.where(mask, new, torch.nan),
        old_log_probs=torch.where(mask, old, torch.nan),
        response_mask=mask,
        advantages=etr.advantages.group_zscore(grades, ids),
        group=group_stats(grades, ids),
        entropy=torch.where(mask, torch.rand(size, width, generator=generator), torch.nan),
    )
    tokens = torch.randint(4, 12, (size, 2 + width), generator=generator)
    attention = torch.cat([torch.ones(size, 2, dtype=torch.long), mask.long()], dim=1)
    return batch, Rollout(tokens, attention, mask, torch.tensor(lengths) < width, 2), grades


def test_every_number_is_the_tokens_own() -> None:
    """GRPO by hand: c = A·r inside [0.8, 1.2] or where the clip does not bind, else 0."""
    batch, rollout, rewards = case([0, 0, 0, 0, 0, 1, 0, 1], [3, 2, 1, 3, 3, 2, 3, 3])
    language_model = tiny_model()
    (row,) = samples.rows(batch, rollout, ITEMS, rewards, language_model, etr.get("grpo"), step=5)
    assert (row["step"], row["prompt"], row["answer"]) == (5, "2+2=", "4")  # the one group with different rewards
    assert [one["reward"] for one in row["completions"]] == [0, 0, 1, 1]
    outcomes = set()
    for place, one in zip((4, 6, 5, 7), row["completions"], strict=True):
        n = one["tokens"]
        assert n == int(batch.response_mask[place].sum()) and one["finished"] == (n < 3)
        advantage = float(batch.advantages[place])
        assert one["advantage"] == pytest.approx(advantage, rel=1e-3)
        for t in range(n):
            old, new = float(batch.old_log_probs[place, t]), float(batch.log_probs[place, t])
            ratio = math.exp(new - old)
            bound = (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
            assert one["ratio"][t] == pytest.approx(ratio, rel=1e-3)
            assert one["log_prob"][t] == pytest.approx(old, rel=1e-3)
            assert one["entropy"][t] == pytest.approx(float(batch.entropy[place, t]), rel=1e-3)  # type: ignore[index]
            assert one["coefficient"][t] == pytest.approx(0 if bound else advantage * ratio, rel=1e-3)
            assert one["clipped"][t] is bound
            outcomes.add(bound)
        assert "".join(one["text"]) == language_model.tokenizer.decode(rollout.completions[place, :n].tolist())
    assert outcomes == {True, False}
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_completions_go_from_the_least_to_the_greatest_advantage() -> None:
    batch, rollout, rewards = case([0.5, 0.1, 0.3, 0, 0.4, 0.2, 0.75, 0.1, *[1] * 8], [2] * 16)
    (row,) = samples.rows(batch, rollout, ITEMS, rewards, tiny_model(), etr.get("grpo"), step=1)
    found = [one["reward"] for one in row["completions"]]
    assert len(found) == samples.COMPLETIONS and found == sorted(found) and (found[0], found[-1]) == (0, 0.75)


def test_without_different_rewards_some_prompt_is_shown_all_the_same() -> None:
    batch, rollout, rewards = case([1, 1, 0, 0], [2] * 4)
    shown = {samples.choose(batch, 2, step).item for step in range(20)}
    assert shown == {0, 1}
    assert samples.choose(batch, 2, 3) == samples.choose(batch, 2, 3)
    (row,) = samples.rows(batch, rollout, ITEMS, rewards, tiny_model(), etr.get("grpo"), step=1)
    assert not any(any(one["coefficient"]) or any(one["clipped"]) for one in row["completions"])


def test_dropped_completions_and_long_ones_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A masked completion (overlong) keeps its tokens and gets no gradient; a long one is cut."""
    monkeypatch.setattr(samples, "TOKENS", 2)
    batch, rollout, rewards = case([0, 1, 0, 1], [3] * 4)
    batch = Batch(**{**vars(batch), "response_mask": batch.response_mask & torch.tensor([0, 1, 0, 1]).bool()[:, None]})
    (row,) = samples.rows(batch, rollout, ITEMS, rewards, tiny_model(), etr.get("etr"), step=2)
    masked, kept = row["completions"]
    assert masked["tokens"] == 3 and len(masked["text"]) == len(masked["ratio"]) == 2
    assert masked["coefficient"] == [0, 0] and masked["clipped"] == [False, False] and masked["advantage"] == 0
    assert any(kept["coefficient"]) or any(kept["clipped"])


@pytest.mark.parametrize("steps", [1, 7, 119, 120, 121, 1000, 12345])
def test_the_file_stays_small_and_has_both_ends(steps: int) -> None:
    due = [step for step in range(1, steps + 1) if samples.due(step, steps)]
    assert due[0] == 1 and due[-1] == steps
    assert len(due) <= samples.LINES + 2 and (steps > 120 or len(due) == steps)


class Bytes:
    """A tokenizer whose tokens are bytes, and one that drops the space of a first word, as some do."""

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return bytes(tokens).decode(errors="replace")


class Words:
    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(f" {'abc'[token]}" for token in tokens).removeprefix(" ")


def test_pieces_join_to_the_text() -> None:
    text = "a→b 🙂é"
    found = samples.pieces(Bytes(), list(text.encode()))
    assert "".join(found) == text and len(found) == len(text.encode())
    assert [piece for piece in found if piece] == list(text)
    assert samples.pieces(Words(), [0, 1, 2]) == ["a", " b", " c"]
    broken = samples.pieces(Bytes(), [0xFF, 0xFE, 0xFF, 0xFE, 65])
    assert len(broken) == 5 and broken[-1] == "A"  # bytes that never become a character do not swallow what follows
    assert samples.pieces(Bytes(), []) == []
