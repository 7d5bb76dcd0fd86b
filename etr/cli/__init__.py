"""Floor 7: the command line. `etr --help` teaches; each command's own `--help` has its options and examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from etr.errors import InputError

MODULES = (
    "inspect",
    "toy",
    "sweep",
    "doctor",
    "llm",
    "evaluate",
    "observe",
    "reports",
    "bench",
    "reproduce",
    "new",
    "promote",
    "validate",
    "replay",
    "plan",
)
DESCRIPTION = """Elastic trust regions: understand, invent and use policy objectives for RL with verifiable rewards.

Start here:
  etr list                                   all objectives, with their papers
  etr show etr                               one of them: equation, fields, what it reduces to
  etr toy --recipe etr --set micro=0.3       64 seeds on a bandit, in seconds
  etr compare                                ETR against GRPO and the wide control, with intervals
  etr sweep etr --grid micro=0,0.25,0.5      one recipe at several settings, on the same seeds
  etr doctor --measure                       will a run work here, and how much of it is rounding
  etr train --recipe etr --steps 20          a real LLM with the same loss, on a laptop
  etr observe runs/my-run                    where a run's entropy went, and whether to worry
  etr check my_file.py:Mine                  the laws of objectives, on one of your own
  etr validate my_file.py:Mine               is it fit for more than toys: a scorecard
  etr promote etr --to verl                  a folder that trains with one command: here, on verl or on TRL
  etr replay runs/my-run                     proof that a run trained with this loss
  etr plan --gpus 64                         memory, hours and cost on a cluster
  etr new my_method                          a package of your own that etr finds by itself
  etr reproduce                              published statements on entropy and clipping, recomputed"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake is one sentence, a bug keeps its traceback."""
    from tyro.conf import FlagCreatePairsOff
    from tyro.extras import SubcommandApp

    app = SubcommandApp()
    for module in MODULES:
        for name, command in import_module(f"etr.cli.{module}").COMMANDS.items():
            app.command(command, name=name)
    try:
        app.cli(prog="etr", description=DESCRIPTION, args=argv, use_underscores=False, config=(FlagCreatePairsOff,))
    except InputError as error:
        print(f"etr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("etr: stopped", file=sys.stderr)
        return 130
    return 0
