"""`python -m criserver` is the criserver command."""

import sys

from criserver.cli import main

if __name__ == "__main__":
    sys.exit(main())
