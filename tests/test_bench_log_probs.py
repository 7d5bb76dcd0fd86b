"""The log-probs benchmark measures contenders that compute the same thing."""

from __future__ import annotations

import pytest
import torch

from etr.bench import log_probs as bench
from etr.bench.log_probs import FULL, LIGER, OURS, OURS_LOSS, Head, contender, measure

pytest.importorskip("transformers")
SMALL = Head(rows=2, length=5, width=8, vocabulary=31, repeats=1)


def test_chunked_and_full_logits_are_the_same_loss_and_gradient() -> None:
    torch.manual_seed(0)
    tokens, advantages = torch.randint(31, (10,)), torch.randn(2)
    found = []
    for name in (OURS, FULL):
        torch.manual_seed(1)
        hidden, weight = torch.randn(10, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
        loss = contender(name, SMALL, hidden, weight, tokens, advantages)()
        found.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [OURS, FULL, OURS_LOSS])
def test_a_measurement_has_seconds_and_memory(name: str) -> None:
    result = measure(name, SMALL)
    assert len(result["seconds"]) == 1 and result["peak"] >= 0


def test_the_peer_is_left_out_with_its_reason() -> None:
    assert measure(LIGER, SMALL) == {"skipped": "Liger's kernels are for GPUs"}


def test_rows_have_ratios_to_the_first_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {FULL: {"seconds": [2.0, 4.0], "peak": 400}, OURS: {"seconds": [1.0, 3.0], "peak": 100}}
    known |= {LIGER: {"skipped": "no GPU"}, OURS_LOSS: {"seconds": [1.0], "peak": 100}}
    monkeypatch.setattr(bench, "child", lambda name, head, module: known[name])
    full, ours = bench.compared(SMALL, (FULL, OURS))
    assert (full["time ratio"], full["memory ratio"]) == (1.0, 1.0)
    assert (ours["time ratio"], ours["memory ratio"]) == (0.625, 0.25)
    peer, alone = bench.compared(SMALL, (LIGER, OURS_LOSS))
    assert peer == {"contender": LIGER, "skipped": "no GPU"}
    assert "time ratio" not in alone and alone["seconds"] == 1.0
