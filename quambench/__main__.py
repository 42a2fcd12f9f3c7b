"""`python -m quambench` is `quambench`, where the environment's scripts are not on the path."""

from __future__ import annotations

import sys

from quambench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
