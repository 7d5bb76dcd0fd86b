"""What a host reads: the questions of a task as rows of its own kind, split as our trainer splits them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from etr.errors import InputError
from etr.files import atomic_write
from etr.llm.config import TrainConfig
from etr.llm.items import Item
from etr.llm.rewards import combine
from etr.llm.rewards.grader import AUTO
from etr.llm.tasks import Task, load_task
from etr.promote.recipes import promoted_reference

Kind = Literal["parquet", "jsonl"]
TRAIN, HELD_OUT = "train", "held_out"


def binary_rewards(config: TrainConfig) -> bool:
    """Is the reward 0 or 1, as all of ours are? Of a function of the user's own nobody knows."""
    return ":" not in config.reward or config.reward.startswith("regex:")


def refuse_parts(config: TrainConfig) -> None:
    """Raise InputError for rewards that only our own grader puts together."""
    given = sorted(set(combine.OPTIONS) & set(config.task_options))
    if given:
        raise InputError(
            f"the task options {', '.join(given)} are read by our own trainer only; combine the parts in your reward "
            "function, and let it return one number"
        )


def write_data(
    folder: Path,
    kind: Kind,
    *,
    task: str,
    options: Mapping[str, Any] | None = None,
    reward: str = AUTO,
    seed: int = 0,
    held_out: int = 0,
) -> list[Path]:
    """Write the training questions, and `held_out` others, of a task into `folder/data`; returns the files.

    kind: "parquet" with the columns of verl (prompt as chat messages, data_source, reward_model, extra_info), or
    "jsonl" with a prompt and an answer for TRL. The held-out side is decided by a hash of the question, so it is the
    same here and in `etr train`. Raises InputError as `load_task` does.
    """
    place = folder / "data"
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for name, split, size in ((TRAIN, "train", None), (HELD_OUT, "held-out", held_out)):
        if size == 0:
            continue
        found = load_task(task, split=split, size=size, seed=seed, config=options)  # type: ignore[arg-type]
        scorer = promoted_reference(folder, found.scorer if reward == AUTO else reward)
        rows = [row(found, item, number, name, scorer) for number, item in enumerate(found.items)]
        written.append(place / f"{name}.{kind}")
        atomic_write(written[-1], _parquet(rows) if kind == "parquet" else _jsonl(rows))
    return written


def row(task: Task, item: Item, number: int, split: str, scorer: str) -> dict[str, Any]:
    """One question with everything that grading it needs."""
    return {
        "data_source": task.name,
        "prompt": [dict(message) for message in item.messages],
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": {
            "index": number,
            "split": split,
            "question": item.question,
            "scorer": scorer,
            "entry": None if item.entry is None else json.dumps(item.entry, default=str),
        },
    }


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ({"prompt": r["prompt"], "answer": r["reward_model"]["ground_truth"], **r["extra_info"]} for r in rows)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
