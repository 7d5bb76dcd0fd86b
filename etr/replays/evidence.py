"""Whose code a record stands for: that of now, and that which a scorecard beside it found good."""

from __future__ import annotations

from pathlib import Path

from etr.errors import InputError
from etr.provenance import loss_hash
from etr.recorded import Recorded
from etr.validate import FILE, read_scorecard


def evidence(recorded: Recorded, file: Path) -> tuple[dict[str, bool], list[str]]:
    """Whether the recorded loss is that of the code at hand (same_code) and the validated one (validated, where a
    scorecard lies beside the record or one folder up), each with a sentence."""
    found = {"same_code": loss_hash(recorded.recipe) == recorded.loss_hash}
    words = "the same as" if found["same_code"] else "NOT those"
    notes = [f"The code and fields of the loss are {words} at the time of the record ({recorded.loss_hash[:12]})."]
    folder = file.resolve().parent
    card = next((path for path in (folder / FILE, folder.parent / FILE) if path.is_file()), None)
    if card is None:
        return found, [*notes, f"No {FILE} lies beside the record, so nothing says whether this loss was validated."]
    try:
        scorecard = read_scorecard(card)
    except InputError as error:
        return {**found, "validated": False}, [*notes, f"The scorecard cannot be used: {error}."]
    same = scorecard.loss_hash == recorded.loss_hash
    reasons = scorecard.mismatches(recorded.recipe) if found["same_code"] else []
    found["validated"] = same and scorecard.passed and not reasons
    if not same:
        text = f"is NOT the validated one: the scorecard '{card}' is of {scorecard.loss_hash[:12]}"
    elif not scorecard.passed:
        text = f"did NOT pass its scorecard '{card}' ({', '.join(scorecard.failed)})"
    elif reasons:
        text = f"has a scorecard '{card}' that does not stand for it: {'; '.join(reasons)}"
    else:
        text = f"is the validated one: the scorecard '{card}' has the same hash"
    return found, [*notes, f"The recorded loss {text}."]
