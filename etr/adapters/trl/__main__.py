"""`python -m etr.adapters.trl FOLDER`."""

import sys

from etr.adapters.trl.main import main

if __name__ == "__main__":
    sys.exit(main())
