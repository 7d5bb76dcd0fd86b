"""Floor 7: the command line. `etr --help` teaches; each command's own `--help` has its options and examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etr.errors import InputError

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
  etr reproduce                              published statements on entropy and clipping, recomputed"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake is one sentence, a bug keeps its traceback."""
    from tyro.conf import FlagCreatePairsOff
    from tyro.extras import SubcommandApp

    from etr.cli import bench, doctor, evaluate, inspect, llm, observe, reports, reproduce, sweep, toy

    app = SubcommandApp()
    for module in (inspect, toy, sweep, doctor, llm, evaluate, observe, reports, bench, reproduce):
        for name, command in module.COMMANDS.items():
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
