"""`etr eval`: how often a model is right, on held-out questions or a benchmark."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from etr.cli.options import console, print_table, progress_bar

if TYPE_CHECKING:
    from etr.llm.evaluate import EvalResult
    from etr.llm.models import LanguageModel
    from etr.llm.tasks import Split, Task

SHORT_ANSWERS = ("arithmetic", "copy", "copy-reverse", "mod-arithmetic")
SHORT, LONG = 8, 1024  # tokens of an answer
Side = Literal["auto", "train", "held-out", "all"]


def eval_command(
    model: str = "smollm2-135m",
    task: str = "arithmetic",
    task_options: dict[str, int | str] = {},  # noqa: B006  (tyro reads it; never changed)
    split: Side = "auto",
    items: int = 50,
    samples: int = 8,
    k: tuple[int, ...] = (1, 2, 4, 8),
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    reward: str = "auto",
    reward_timeout: float = 10.0,
    trained_on: str | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Evaluate a model: pass@1, unbiased pass@k, avg@k and maj@k with 95 % intervals over questions.

    Held-out questions: etr eval --model runs/demo/llm/checkpoints/step-60 --task arithmetic --items 100

    A benchmark: etr eval --task math500/test.jsonl --items 500 --samples 4 --k 1 4 --out math500.jsonl

    Args:
        model: smollm2-135m, a Hugging Face folder (a checkpoint of `etr train` is one) or hub id, tiny-random, or
            toy-llama, which knows only copy-reverse and mod-arithmetic.
        task: arithmetic, copy-reverse, mod-arithmetic, a reasoning-gym dataset, a .jsonl, .json or .parquet file in the
            layout of GSM8K, MATH-500, AIME or AMC or with the keys prompt and answer, or hf:NAME[/config][@split].
        task_options: Options of a reasoning-gym task, or of a file: prompt and answer (columns), instruction.
        split: The questions: held-out (one in five, which training never sees), train, or all; auto is all of a
            benchmark and held-out for everything else.
        items: Questions.
        samples: Answers sampled for each question.
        k: The k of pass@k and maj@k, each at most `samples`.
        max_new_tokens: Longest answer in tokens; 8 for arithmetic and the toy tasks, else 1024, if not given.
        temperature: Sampling temperature.
        engine: auto, transformers, vllm, or the address of a vLLM server.
        device: cpu, cuda, or auto for a GPU where there is one.
        dtype: Number format of the weights, float32 or bfloat16.
        reward: auto (the task's own), exact, numeric, math, regex:PATTERN, module:function or file.py:function.
        reward_timeout: Seconds that grading one answer may take.
        trained_on: Task whose questions the model was trained on; common questions are reported. A checkpoint of
            `etr train` says that itself.
        seed: Number that fixes questions and samples.
        out: File for one JSON line per question with all its answers.
    """
    from etr.llm.evaluate import evaluate
    from etr.llm.rewards import Grader
    from etr.llm.rollout import EngineSettings, make_engine
    from etr.llm.tasks import load_task

    questions = load_task(task, split=_side(split, task, task_options), seed=seed, config=task_options)
    _report_overlap(questions, model, trained_on)
    tokens = max_new_tokens or (SHORT if task in SHORT_ANSWERS else LONG)
    with Grader(questions, reward, reward_timeout, say=_say) as grader, progress_bar() as bar:
        language_model = _load(model, device, dtype)
        with closing(make_engine(engine, language_model, EngineSettings(tokens, temperature), _say)) as sampler:
            move = bar("questions", min(items, len(questions.items)))
            result = evaluate(
                language_model, questions, sampler, items=items, samples=samples, ks=k, seed=seed, grader=grader,
                progress=lambda done, total: move(done),
            )  # fmt: skip
    _print(result, f"{model} on {task}", samples, tokens)
    if out is not None:
        result.write(out)


def _load(model: str, device: str, dtype: str) -> LanguageModel:
    from etr.llm.config import check_choice
    from etr.llm.models import load_model
    from etr.llm.setup import pick_device

    check_choice("dtype", dtype)
    place = pick_device(device)
    language_model = load_model(model, dtype)
    language_model.model.to(place)
    return language_model


def _print(result: EvalResult, title: str, samples: int, tokens: int) -> None:
    measures = {f"pass@{k}": found for k, found in result.pass_at.items()}
    measures[f"avg@{samples}"] = result.average
    measures |= {f"maj@{k}": found for k, found in result.majority_at.items() if k > 2}  # of fewer, luck decides
    rows = [[name, f"{i.estimate:.3f}", f"[{i.low:.3f}, {i.high:.3f}]"] for name, i in measures.items()]
    failed = (
        f". Not graded: {result.timeouts} too slow, {result.errors} failed" if result.timeouts + result.errors else ""
    )
    caption = (
        f"{len(result.rows)} questions, {samples} samples each; intervals: bootstrap over questions. "
        f"Cut off at {tokens} tokens: {result.truncated:.0%} of the answers{failed}"
    )
    print_table(title, ["measure", "estimate", "95 % interval"], rows, caption)


def _side(split: Side, task: str, options: dict[str, int | str]) -> Split:
    """For auto all of a benchmark, since nobody trains on a part of it; of anything else what training leaves out."""
    from etr.llm.data.layouts import is_benchmark

    if split != "auto":
        return split
    return "all" if is_benchmark(task, options) else "held-out"


def _report_overlap(questions: Task, model: str, trained_on: str | None) -> None:
    """Say how many questions the model has seen in training, where that is known and it is another task."""
    from etr.llm.data.overlap import overlap, warning
    from etr.llm.tasks import load_task
    from etr.runs import is_run, read_config

    run = Path(model).expanduser().resolve().parent.parent  # of runs/my-run/checkpoints/step-20
    options: dict[str, int | str] = {}
    seed = 0
    if trained_on is None and is_run(run):
        settings = read_config(run).get("settings", {})
        trained_on, options = settings.get("task"), settings.get("task_options", {})
        seed = settings.get("seed", 0)
    if trained_on is None:
        return
    side: Split = "train" if trained_on == questions.name else "all"
    training = load_task(trained_on, split=side, seed=seed, config=options)
    common = overlap(training.items, questions.items)
    if common:
        _say("warning: " + warning(trained_on, questions.name, common, len(questions.items)))


def _say(message: str) -> None:
    console.print(f"etr: {message}", markup=False, soft_wrap=True)


COMMANDS = {"eval": eval_command}
