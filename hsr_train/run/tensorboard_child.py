"""The TensorBoard server as a process of its own, started by `tensorboard.TensorboardServer` as a plain script.

Usage: python -P tensorboard_child.py PARENT_PID [tensorboard's own options]

It ends as soon as its parent does, however that ends: a killed run leaves no server behind. Looking at the parent's
number works on every POSIX system; Linux' parent-death signal would follow the parent's thread instead.
"""

import os
import sys
import threading
import time

POLL_S = 0.5


def main() -> None:
    """Serve until the parent is gone or a signal arrives."""
    parent = int(sys.argv[1])
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    from tensorboard.main import run_main  # type: ignore[import-untyped]

    sys.argv = ["tensorboard", *sys.argv[2:]]
    run_main()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(0)  # TensorBoard's data server ends when this process' end of its pipe closes


if __name__ == "__main__":
    main()
