"""`python -m edgevtx` is the command line."""

import sys

from edgevtx.cli import main

sys.exit(main())
