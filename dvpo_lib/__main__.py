import sys

from dvpo_lib.chain.cli import main

sys.exit(main())
