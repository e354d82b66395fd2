"""`python -m golfcore`: the same program as the `golfcore` command."""

import sys

from golfcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
