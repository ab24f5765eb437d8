"""`python -m v2edit` is `v2edit`."""

import sys

from v2edit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
