"""Compare `etr plan` with published runs: writes scaling.json here, and the tables of docs/scaling.md from it.

    python docs/results/scaling.py [--measured SMALL LARGE]

--measured: two files of `etr doctor --measure --json`; the first is the profile from which the second is predicted.
Without it the two that scaling.json holds are kept. No assumption of `etr.plan` was fitted to these rows.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etr.environment import environment
from etr.files import atomic_write, read_json, to_json
from etr.plan import Job, Prediction, predict, shape_of
from etr.plan.devices import device_of
from etr.plan.memory import plan
from etr.plan.profile import read_profile

HERE = Path(__file__).parent
RECORD, PAGE = HERE / "scaling.json", HERE.parent / "scaling.md"
VERL = "https://github.com/verl-project/verl/blob/1dda039b9c6311889a9c9a26040677e1254814f9/docs/advance/"
NEMO = (
    "https://github.com/NVIDIA-NeMo/RL/blob/108bffdab368507a5500f27089ea2e7d90a06dea/docs/about/performance-summary.md"
)
GH200 = "https://github.com/verl-project/verl/issues/1208"
LOG = "https://github.com/eric-haibin-lin/verl-data/blob/experiments/gsm8k/qwen2-7b-fsdp2.log"
NEMO_WORD = "mean length and batch as published; prompts of 150 tokens assumed; a reference pass, as its defaults have"
FIT_WORD = "mean length not published: chosen so that the update takes as long as published, which checks nothing of it"


@dataclass(frozen=True)
class Case:
    """A published run: where it was read, what it was, the seconds of its phases, what is not published.

    fitted: the phase whose published seconds were used to find the mean completion, "" where it was published.
    """

    name: str
    source: str
    job: Job
    published: dict[str, float]
    word: str
    fitted: str = ""
    why: str = ""


def nemo(name: str, model: str, gpus: int, length: int, step: float, why: str = "", **more: Any) -> Case:
    """A row of NeMo RL's table (v0.5, bfloat16): 64 prompts x 32 completions of at most 4096 tokens in all."""
    job = Job(
        model, gpus, prompts=64, group_size=32, prompt_tokens=150, response_tokens=length - 150, longest_tokens=3946,
        scoring_passes=2, **more,
    )  # fmt: skip
    return Case(name, NEMO, job, {"step": step}, NEMO_WORD, why=why)


def h20(gpus: int, gen: float, scoring: float, update: float, page: str = "fully_async.md", **more: Any) -> Case:
    """A colocated run of verl's docs on H20 with DAPO: 512 prompts x 16 completions."""
    job = Job("7b", gpus, "h20", prompts=512, group_size=16, prompt_tokens=150, longest_tokens=28672, **more)
    seconds = {"rollout": gen, "scoring": scoring, "update": update}
    return Case(f"verl, 7B, {gpus} H20, {job.longest // 1024}K tokens", VERL + page, job, seconds, FIT_WORD, "update")


SMALL = (
    "half a billion weights keep no such GPU busy, and a decoding step of 1280 sequences over 152k logits costs more "
    "than is assumed for it; the thread itself asks why the run is slow"
)
CASES = (
    nemo("NeMo RL, Llama-3.1-8B, 16 H100", "llama3.1-8b", 16, 1019, 92.8),
    nemo("NeMo RL, the same, one step off", "llama3.1-8b", 16, 1123, 64.8, engine_share=0.5),
    nemo("NeMo RL, Qwen3-32B, 32 H100", "qwen3-32b", 32, 3251, 376.0, tensor_parallel=4),
    nemo("NeMo RL, the same on 64, one step off", "qwen3-32b", 64, 3252, 200.0, tensor_parallel=4, engine_share=0.5),
    nemo("NeMo RL, Qwen3-30B-A3B, 32 H100", "qwen3-30b-a3b", 32, 3196, 198.0, tensor_parallel=2),
    nemo("NeMo RL, Llama-3.1-8B, 8 GB200", "llama3.1-8b", 8, 1066, 91.0, gpu="gb200"),
    nemo("NeMo RL, Qwen3-32B, 16 GB200", "qwen3-32b", 16, 3253, 381.0, gpu="gb200"),
    Case(
        "verl, Qwen2.5-0.5B, 4 GH200",
        GH200,
        Job("0.5b", 4, "gh200", prompts=1024, group_size=5, prompt_tokens=103, response_tokens=325,
            longest_tokens=1024, scoring_passes=2),
        {"rollout": 74.02, "scoring": 3.566 + 3.42, "update": 14.302},
        "all lengths published; 1024 x 5 follows from the tokens that it logs",
        why=SMALL,
    ),
    h20(32, 357.41, 107.71, 269.80),
    h20(64, 150.72, 70.26, 133.41),
    h20(128, 177.85, 53.92, 113.81),
    dataclasses.replace(
        h20(32, 321.0, 88.0, 286.0, page="one_step_off.md"),
        job=dataclasses.replace(h20(32, 1, 1, 1).job, longest_tokens=20480),
        name="verl, 7B, 32 H20, 20K tokens",
        word=FIT_WORD + "; batch taken to be that of the rows above",
    ),
)  # fmt: skip


TUNING = VERL.replace("advance/", "perf/device_tuning.rst")
# Rows MIN of that page: model (Qwen2's shapes are Qwen2.5's), GPU, LoRA rank (32 assumed), GPUs of the smallest run.
SMALLEST = (
    ("7b", "h800", 0, 2), ("14b", "h800", 0, 4), ("32b", "h20", 0, 8), ("72b", "h800", 0, 32), ("72b", "h20", 0, 32),
    ("7b", "h100", 32, 1), ("14b", "h100", 32, 2), ("32b", "h100", 32, 4), ("72b", "h100", 32, 8),
)  # fmt: skip


def smallest() -> list[dict[str, Any]]:
    """The fewest GPUs (a power of two) on which a model fits, beside the fewest on which verl's users ran it."""
    rows = []
    for model, gpu, rank, published in SMALLEST:
        job = Job(model, 1, gpu, offload=True, lora_rank=rank)
        while not plan(job, shape_of(model), device_of(gpu)).fits:
            job = dataclasses.replace(job, gpus=2 * job.gpus)
        rows.append({"model": model, "gpu": gpu, "lora_rank": rank, "published": published, "predicted": job.gpus})
    return rows


def seconds_of(found: Prediction) -> dict[str, Any]:
    """Ranges of the phases and of the step."""
    return {**found.seconds, "step": found.step}


def fit(job: Job, phase: str, seconds: float) -> Job:
    """The job with the mean completion at which a phase takes that long, by bisection."""
    low, high = 1, job.longest
    while high - low > 1:
        middle = (low + high) // 2
        changed = dataclasses.replace(job, response_tokens=middle)
        low, high = (low, middle) if seconds_of(predict(changed))[phase].mid > seconds else (middle, high)
    return dataclasses.replace(job, response_tokens=low)


def compared(case: Case) -> dict[str, Any]:
    """A case with its prediction: error = predicted / published − 1; whether it lies in the range."""
    job = fit(case.job, case.fitted, case.published[case.fitted]) if case.fitted else case.job
    found = seconds_of(predict(job))
    rows = {name: row(found[name], value) for name, value in case.published.items() if name != case.fitted}
    return {
        "name": case.name, "source": case.source, "word": case.word, "why": case.why, "fitted": case.fitted,
        "published": case.published, "job": dataclasses.asdict(job), "compared": rows,
    }  # fmt: skip


def row(predicted: Any, published: float) -> dict[str, Any]:
    """Three ends of a prediction beside the published value."""
    return {
        **dataclasses.asdict(predicted), "published": published, "error": predicted.mid / published - 1,
        "inside": predicted.good <= published <= predicted.bad,
    }  # fmt: skip


def ratio() -> dict[str, Any]:
    """One forward pass beside an update without recomputation, in a log that does not name its GPU."""
    job = Job("7b", prompts=1024, group_size=5, prompt_tokens=93, response_tokens=197, gradient_checkpointing=False)
    found = predict(job).seconds
    predicted, published = found["scoring"].mid / found["update"].mid, 25.190 / 76.075
    return {"source": LOG, "predicted": predicted, "published": published, "error": predicted / published - 1}


def own(folder: Path, small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    """A larger step of this project on one processor, predicted from a smaller one."""
    (folder / "profile.json").write_text(to_json(small))
    measured, work = large["measured"], large["measured"]["work"]
    group = 8
    job = Job(
        "smollm2-135m", 1, prompts=work["completions"] // group, group_size=group, prompt_tokens=work["prompt"],
        response_tokens=round(measured["sampled"] / work["completions"]), longest_tokens=work["answer"], updates=2,
        prompts_once=True, gradient_checkpointing=False, dtype="float32", steps=1,
    )  # fmt: skip
    found = predict(job, read_profile(folder / "profile.json"))
    rows = {name: row(found.seconds[name], measured["seconds"][name]) for name in ("rollout", "update")}
    return {"small": small, "large": large, "job": dataclasses.asdict(job), "compared": rows}


def tables(record: dict[str, Any]) -> str:
    """Markdown: a row for each compared phase."""
    lines = ["| run | phase | published s | predicted s | range | error |", "|---|---|---|---|---|---|"]
    for case in record["cases"]:
        for phase, found in case["compared"].items():
            mark = "" if found["inside"] else ", outside"
            lines.append(
                f"| [{case['name']}]({case['source']}){' (fitted)' if case['fitted'] else ''} | {phase} | "
                f"{found['published']:.1f} | {found['mid']:.1f} | {found['good']:.1f} to {found['bad']:.1f}{mark} | "
                f"{found['error']:+.0%} |"
            )
    for phase, found in record["own"]["compared"].items():
        lines.append(
            f"| ours, SmolLM2-135M on a CPU, from a step a quarter as large | {phase} | {found['published']:.1f} | "
            f"{found['mid']:.1f} | | {found['error']:+.0%} |"
        )
    same = record["ratio"]
    lines.append(
        f"| [verl, Qwen2-7B, unnamed GPU]({same['source']}) | scoring / update | {same['published']:.3f} | "
        f"{same['predicted']:.3f} | | {same['error']:+.1%} |"
    )
    lines += ["", f"Fewest GPUs that hold it ([verl's smallest tested runs]({TUNING}); ours: a power of two):", ""]
    lines += ["| model | GPU | training | verl | predicted |", "|---|---|---|---|---|"]
    for least in record["smallest"]:
        how = "LoRA" if least["lora_rank"] else "all weights"
        shape = shape_of(least["model"]).name
        lines.append(f"| {shape} | {least['gpu']} | {how} | {least['published']} | {least['predicted']} |")
    return "\n".join(lines)


def between(text: str, mark: str, content: str) -> str:
    """The page with what stands between two marks replaced."""
    head, _, rest = text.partition(f"<!-- {mark} -->\n")
    _, _, tail = rest.partition(f"<!-- end of {mark} -->")
    return f"{head}<!-- {mark} -->\n{content}\n<!-- end of {mark} -->{tail}"


def main(arguments: list[str] | None = None) -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", nargs=2, type=Path)
    options = parser.parse_args(arguments)
    if options.measured:
        small, large = map(read_json, options.measured)
    else:
        small, large = (read_json(RECORD)["own"][name] for name in ("small", "large"))
    with tempfile.TemporaryDirectory() as folder:
        mine = own(Path(folder), small, large)
    record = {
        "cases": [compared(c) for c in CASES],
        "ratio": ratio(),
        "own": mine,
        "smallest": smallest(),
        "environment": environment(),
    }
    atomic_write(RECORD, to_json(record, indent=1) + "\n")
    atomic_write(PAGE, between(PAGE.read_text(encoding="utf-8"), "compared", tables(record)))


if __name__ == "__main__":
    main()
