"""Records of ours through what the installed verl and TRL call; run where they are (`make adapters`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records import recorded

from etr.recipe import load_recipe

FIELDS: dict[str, dict[str, Any]] = {"dr_grpo": {"length": 5}}


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo", "etr"])
@pytest.mark.parametrize("host", ["verl", "trl"])
def test_hosts_meet_our_records(host: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(host)
    pytest.importorskip("gymnasium")  # of the toy path
    from etr import replays

    record = recorded(load_recipe(name, FIELDS.get(name)), tmp_path / "r")
    outcomes, found = replays.run_all(record, ("toy", "llm", host))
    verdicts = {outcome.path: outcome.verdict for outcome in outcomes}
    assert verdicts.pop(host) in ("agrees", "bit-equal") and set(verdicts.values()) == {"bit-equal"}
    wrong = found[host]._replace(gradient=-found[host].gradient)
    assert replays.compare(host, wrong, record, bits=False).disagrees
