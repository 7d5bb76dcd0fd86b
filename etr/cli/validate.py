"""`etr validate`: the scorecard of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from etr.cli.options import console, print_table, progress_bar, recipe_with
from etr.cli.toy import Set
from etr.errors import InputError
from etr.toy.cache import Cache

COLOURS = {"pass": "green", "fail": "red", "not applicable": "yellow"}


def validate_command(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    set_: Set = (),
    out: Path | None = None,
    quick: bool = False,
    no_cache: bool = False,
) -> None:
    """Run the suite that a recipe must pass before `etr promote` takes it to an LLM, and write its scorecard.

    It checks the laws; sign, region, splits over micro-batches and ranks; bfloat16; extreme ratios and stale data;
    learning on a bandit and on answers of several tokens, tuned as GRPO and a control of equal width are; and cost.
    Writes scorecard.json and scorecard.html with every verdict, its interval and its line. A few minutes at most.
    The exit status is 0 if it passed and 2 if it did not.

    Examples: etr validate etr; etr validate my_file.py:Mine --set eps_high=0.28 --quick

    Args:
        recipe: An objective's name, a .yaml file, module:Class or path/to/file.py:Class.
        set_: Fields of the recipe to change, for example micro=0.3.
        out: Folder for the scorecard; runs/scorecards/<name of the recipe> if not given. An older one is replaced.
        quick: Fewer seeds, to look at a draft; `etr promote` does not accept it.
        no_cache: Train also what runs/.cache (or the folder in ETR_CACHE) holds already, and store nothing.
    """
    from etr.validate import default_folder, validate, write_scorecard
    from etr.validate.page import headline, table, write_page  # imports matplotlib

    loaded = recipe_with(recipe, set_)
    cache = None if no_cache else Cache()
    with progress_bar() as start:
        scorecard, bench = validate(loaded, quick, start, cache)
    folder = out or default_folder(loaded.name)
    file = write_scorecard(folder, scorecard)
    page = write_page(folder, scorecard, bench.histories)
    header, rows = table(scorecard)
    marked = [[name, f"[{COLOURS[row]}]{row}[/]", escape(text)] for name, row, text, _ in rows]
    print_table(f"Scorecard of {loaded.name}: {headline(scorecard).lower()}", header[:3], marked)
    console.print(f"Wrote {file} and [bold]{page}[/bold].", soft_wrap=True)
    if not scorecard.passed:
        raise InputError(f"'{loaded.name}' does not pass. " + " ".join(f"{text}." for text in scorecard.reasons()))


COMMANDS = {"validate": validate_command}
