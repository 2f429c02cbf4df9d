"""Whether a training with a time budget is done in time, and uses its time: five budgets on the built-in set.

    python benchmarks/time_budget.py --budgets 60s 2min 3min 5min 10min

Each is the real command. Printed: the share of the budget that the whole command took (1 at most), the epochs, whether
an epoch was cut, one epoch's share of the budget (what may be left over), the rate of the last epoch relative to the
highest rate, the best mAP50, and the load of the machine when it began and when it ended. Other work on the machine
makes it harder, and is welcome. Of a run that is late, the end of its log follows. Exit status 1 if one is late, or
leaves more than a tenth of its budget and more than its longest epoch.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from side_by_side import machine

from hsr_train.pace import parse_duration

LEAST_USED = 0.9
LOG_LINES = 20
CUT = re.compile(r"The time is up: the epoch ends after (\d+) of (\d+) images")


def run(budget: str, folder: Path, more: list[str]) -> tuple[bool, str]:
    """Train with a budget; return whether that went as promised, and lines about it."""
    words = ["preset=demo", f"train.time_budget={budget}", f"output_dir={folder}", "tensorboard.serve=false", *more]
    load, began = os.getloadavg()[0], time.monotonic()
    done = subprocess.run([sys.executable, "-m", "hsr_train", *words], check=False, capture_output=True, text=True)
    took_s, seconds = time.monotonic() - began, parse_duration(budget)
    assert seconds is not None
    if done.returncode:
        return False, f"{budget:>6}  failed with status {done.returncode}: {done.stderr.splitlines()[-1]}"
    (home,) = (path.parent for path in folder.glob("*/*/training_result.json"))
    with (home / "timings.csv").open() as file:
        epochs_s = [float(row["epoch_s"]) for row in csv.DictReader(file)]
    with (home / "results.csv").open() as file:
        rates = [float(next(v for k, v in row.items() if k.startswith("lr"))) for row in csv.DictReader(file)]
    metrics = json.loads((home / "training_result.json").read_text())["metrics"]
    ended = CUT.search(done.stderr)
    if ended:  # as long as it would have been
        epochs_s[-1] *= int(ended[2]) / int(ended[1])
    used, is_late, last = took_s / seconds, took_s > seconds, "cut" if ended else "whole"
    last_rate = rates[-1] / (max(rates) or math.nan)  # one that is cut in its first step had no rate yet
    line = (
        f"{budget:>6}  {used:6.3f}  {len(epochs_s):6}  {last:>5}  {median(epochs_s) / seconds:9.3f}  "
        f"{last_rate:9.3f}  {next(iter(metrics.values())):12.3f}  {load:.1f} to {os.getloadavg()[0]:.1f}"
    )
    if is_late:
        line += "".join(f"\n        {text}" for text in done.stderr.splitlines()[-LOG_LINES:])
    return not is_late and (used >= LEAST_USED or seconds - took_s <= max(epochs_s)), line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", nargs="+", default=["60s", "2min", "3min", "5min", "10min"])
    parser.add_argument("overrides", nargs="*", help="further settings, such as export.formats=[onnx]")
    arguments = parser.parse_args()
    print(machine())
    print("budget    used  epochs   last  one epoch  last rate  first metric  load")
    kept = 0
    for budget in arguments.budgets:
        with tempfile.TemporaryDirectory() as folder:
            promised, line = run(budget, Path(folder), arguments.overrides)
            kept += promised
            print(line, flush=True)
    print(f"As promised: {kept} of {len(arguments.budgets)}")
    return 0 if kept == len(arguments.budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
