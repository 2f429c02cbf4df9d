"""The command in a process whose third training step fails for lack of memory, if it is process 1 of several."""

import os
import sys

from classify_runs import GPU_OOM, failing

from hsr_train.cli import main
from hsr_train.engines.detection.loop import Loop

with failing(Loop, "backward", *([3] if os.environ.get("RANK") == "1" else []), error=GPU_OOM):
    sys.exit(main())
