"""`python -m hsr_train`: the command line of `cli.py`."""

import sys

from hsr_train.cli import main

sys.exit(main())
