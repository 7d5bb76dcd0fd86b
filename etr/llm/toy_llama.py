"""The toy Llama: taught two toy tasks until it is right now and then, so that RL has something to sharpen.

It is the whole of the LLM trainer's path in seconds: 80,000 weights, a tokenizer of characters, a warm-up by supervised
learning that runs once and is kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from etr.errors import InputError
from etr.files import atomic_write, to_json
from etr.llm import small
from etr.llm.items import Item
from etr.llm.tasks import encode, load_task
from etr.llm.toy_tasks import CHARACTERS, TOY_LLAMA, TOY_TASKS
from etr.llm.weights import cache_folder

IGNORED = -100  # transformers' label for a token that is not to be learned
Lessons = Sequence[Sequence[Item]]
MEASURED = 256  # items whose pass rate is computed in the warm-up


@dataclass(frozen=True)
class WarmUp:
    """How the toy Llama is taught.

    Every `check_every` steps the pass rate of each task is computed; the next steps teach only the tasks below `goal`,
    so that an easy task waits for a hard one. It ends when none is left, or after `most_steps`.
    """

    seed: int = 0
    goal: float = 0.4
    learning_rate: float = 3e-3
    batch_size: int = 128
    check_every: int = 10
    weight_decay: float = 0.1
    most_steps: int = 1000


def toy_llama(settings: WarmUp = WarmUp()) -> tuple[Any, Any]:
    """The model and its tokenizer: from the cache, or taught now and put there if the cache can be written."""
    tokenizer = small.character_tokenizer(CHARACTERS)
    model = small.random_llama(tokenizer, settings.seed)
    lessons = [load_task(name, size=sys.maxsize, split="train").items for name in TOY_TASKS]
    path = cache_folder() / f"{TOY_LLAMA}-{cache_key(settings, lessons)}.safetensors"
    if not _read(path, model):
        with _progress(settings.goal) as show:
            warm_up(model, tokenizer, lessons, settings, show)
        _write(path, model)
    return model, tokenizer


def warm_up(
    model: Any, tokenizer: Any, lessons: Lessons, settings: WarmUp, show: Callable[[float], None] = lambda rate: None
) -> None:
    """Teach the items of each task by cross-entropy on answer and end token, in place; `show` hears the lowest rate.

    A pure function of its arguments: one thread, because the order of sums, and so the last bit, depends on that.
    """
    tokens, labels = labelled(tokenizer, [item for items in lessons for item in items])
    ends = list(accumulate(len(items) for items in lessons))
    rows = [range(end - len(items), end) for items, end in zip(lessons, ends, strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    draw = random.Random(settings.seed)
    with _single_thread():
        for step in range(settings.most_steps):
            if step % settings.check_every == 0:
                rates = [pass_rate(model, tokens[part[:MEASURED]], labels[part[:MEASURED]]) for part in rows]
                below = [part for part, rate in zip(rows, rates, strict=True) if rate < settings.goal]
                show(min(rates))
                if not below:
                    return
            batch = [draw.choice(draw.choice(below)) for _ in range(settings.batch_size)]
            optimizer.zero_grad()
            model(input_ids=tokens[batch], labels=labels[batch]).loss.backward()
            optimizer.step()


def labelled(tokenizer: Any, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Question, answer and end token of each item as ids `[N, L]`; labels `[N, L]` leave out question and padding."""
    questions = [encode(tokenizer, item) for item in items]
    answers = [[*tokenizer(item.answer)["input_ids"], tokenizer.eos_token_id] for item in items]
    pairs = list(zip(questions, answers, strict=True))
    width = max(len(question) + len(answer) for question, answer in pairs)
    tokens = torch.full((len(pairs), width), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), width), IGNORED)
    for row, (question, answer) in enumerate(pairs):
        start, stop = len(question), len(question) + len(answer)
        tokens[row, :stop] = torch.tensor(question + answer)
        labels[row, start:stop] = torch.tensor(answer)
    return tokens, labels


@torch.no_grad()
def pass_rate(model: Any, tokens: Tensor, labels: Tensor) -> float:
    """Mean probability of the right answer and its end at temperature 1: the expected reward, computed not sampled.

    tokens, labels: `[N, L]` as `labelled` makes them.
    """
    log_pi = model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
    kept = labels[:, 1:] != IGNORED
    taken = log_pi.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return float(torch.where(kept, taken, 0.0).sum(-1).exp().mean())


def cache_key(settings: WarmUp, lessons: Lessons) -> str:
    """Hash of everything that the weights depend on: settings, items, this code and the versions of its libraries."""
    import transformers

    content = {
        "settings": asdict(settings),
        "items": [[(item.question, item.answer) for item in items] for items in lessons],
        "code": [Path(name).read_text(encoding="utf-8") for name in (__file__, small.__file__)],
        "versions": [torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(to_json(content).encode()).hexdigest()[:16]


def _read(path: Path, model: Any) -> bool:
    """Put the cached weights into the model; False where there are none or they are damaged."""
    parameters = dict(model.named_parameters())  # names a tied weight once
    try:
        saved = safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError):
        return False
    if {name: value.shape for name, value in saved.items()} != {name: p.shape for name, p in parameters.items()}:
        return False
    model.load_state_dict(saved, strict=False)
    return True


def _write(path: Path, model: Any) -> None:
    """Keep the weights if possible; if not, the next run teaches them again, which costs its seconds and no more."""
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, safetensors.torch.save(weights))


@contextmanager
def _progress(goal: float) -> Iterator[Callable[[float], None]]:
    """A line on stderr, and on a terminal a bar that fills as the lowest pass rate nears the goal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    print(f"etr: teaching {TOY_LLAMA} its tasks (once, about 15 s) ...", file=sys.stderr)
    columns = (
        TextColumn("pass rate"),
        BarColumn(),
        TextColumn("{task.completed:.2f} of {task.total}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=goal)
        yield lambda rate: bar.update(task, completed=min(rate, goal))


@contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
