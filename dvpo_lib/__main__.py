"""Entry point of `python -m dvpo_lib`."""

import sys

from dvpo_lib.chain.cli import main

sys.exit(main())
