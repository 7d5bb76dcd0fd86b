"""`python -m etr`: the same as the command `etr`."""

import sys

from etr.cli import main

if __name__ == "__main__":
    sys.exit(main())
