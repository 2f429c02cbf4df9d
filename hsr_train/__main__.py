"""`python -m hsr_train`: the command line of `cli.py`."""

import sys

from hsr_train.cli import console

if __name__ == "__main__":  # not in a process that multiprocessing starts anew
    sys.exit(console())
