"""Time and memory of `python -m hsr_train --cfg job` against a bare Hydra application's `--cfg job`.

    python benchmarks/cfg_job.py [--rounds 15]

Both run in turn, so that whatever else the machine does falls on both. Goals: at most 3 times the bare application's
time, and under 100 MB at the peak.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAX_RATIO = 3.0
MAX_MB = 100.0
BARE_APP = """
import hydra

@hydra.main(config_path="conf", config_name="config")
def main(config):
    pass

main()
"""


def run(command: list[str], cwd: Path) -> tuple[float, float]:
    """Return wall time in seconds and peak resident memory in MB of one command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return wall, usage.ru_maxrss * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder)
        (cwd / "conf").mkdir()
        (cwd / "conf" / "config.yaml").write_text("epochs: 1\n")
        (cwd / "bare.py").write_text(BARE_APP)
        bare = [sys.executable, "bare.py", "--cfg", "job"]
        ours = [sys.executable, "-m", "hsr_train", "--cfg", "job"]
        for command in (bare, ours):
            run(command, cwd)  # Compiles the modules.
        pairs = [(run(bare, cwd), run(ours, cwd)) for _ in range(rounds)]
    bare_s, ours_s = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
    bare_mb, ours_mb = (max(pair[i][1] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
    print(f"bare Hydra  {bare_s:.3f} s  {bare_mb:.0f} MB")
    print(f"hsr_train   {ours_s:.3f} s  {ours_mb:.0f} MB")
    print(f"ratio {ratio:.2f}, median of {rounds} pairs (goals: at most {MAX_RATIO}; under {MAX_MB:.0f} MB)")
    return int(ratio > MAX_RATIO or ours_mb >= MAX_MB)


if __name__ == "__main__":
    sys.exit(main())
