"""What mixed precision, a cache and loader workers bring here, beside what a published guide says of each.

    python benchmarks/performance_claims.py SET/data.yaml                    # on a GPU: 640 px, the tier's batch
    python benchmarks/performance_claims.py SET/data.yaml --imgsz 160        # about 15 minutes on two CPU cores

Three questions, each answered by runs of our command that differ in one setting: `train.amp` (on a GPU only),
`train.cache` (none, disk, ram; without workers, so that all of the loading is seen) and `train.workers` (0, 2, 4, 8,
no more than cores). The runs of a question follow each other in every repeat, so that other work meets all of them.
Images/s, the share of time waiting, processor time and memory are those of timings.csv, of the training part of the
epochs after the first, which reads the pictures and fills the cache. A gain is relative to the first setting of the
question, repeat by repeat. "Loading" is what a claim about loading speaks of: seconds of stepping for each second of
waiting. The steps are the same with any cache and any workers, so it says how much faster batches arrive, and other
work, which slows both, hardly changes it. Without workers all of the loading is waited for; of theirs, what they do not
hide. Exit status 0: figures, not a verdict.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from run_records import Speed, middle, ratio
from side_by_side import command_line, copy_set, environment, machine, ours

from hsr_train.hardware import detect

WORKERS = (0, 2, 4, 8)


@dataclass(frozen=True)
class Question:
    """One setting with its values; the first is what the others are held against.

    Attributes:
        key: The setting.
        values: What is typed.
        claim: What the guide promises of the others.
        fixed: Settings that only this question has.
    """

    key: str
    values: tuple[str, ...]
    claim: str
    fixed: tuple[str, ...] = ()


def questions(device: str, cores: int) -> Iterator[Question]:
    """Yield what can be asked on this machine, and say what cannot."""
    if device == "cpu":
        print("train.amp: not measured: mixed precision needs a GPU, and there is none\n")
    else:
        yield Question("train.amp", ("false", "true"), "training +30 to 50 %, GPU memory -50 %")
    yield Question(
        "train.cache", ("none", "disk", "ram"), "loading of later epochs +200 % (disk)", ("train.workers=0",)
    )
    workers = tuple(str(number) for number in WORKERS if number <= cores)
    left_out = [number for number in WORKERS if number > cores]
    if left_out:
        print(f"train.workers={', '.join(map(str, left_out))}: not measured: more than the {cores} cores\n")
    yield Question("train.workers", workers, "loading +50 % (8 workers)", ("train.cache=none",))


class Bench:
    """Runs our command in `folder` on a copy of the set."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.data = copy_set(options.data, folder / "set")
        self.environment = environment(folder)
        self._count = 0

    def speed(self, *words: str) -> Speed:
        """Train with some settings and return how fast it was."""
        self._count += 1
        options, output = self.options, self.folder / f"run{self._count}"
        common = [
            f"data.path={self.data}", f"data.cache_dir={self.folder / 'cache'}", f"output_dir={output}",
            f"model={options.model}", "model.weights=scratch", f"train.device={options.device}",
            f"train.epochs={options.epochs}", f"train.imgsz={options.imgsz}", "train.patience=0",
            "train.save_period=0", "train.close_mosaic=0", "tensorboard.serve=false",
            *([f"train.batch={options.batch}"] if options.batch else []),
        ]  # fmt: skip
        done = subprocess.run(
            ours(*common, *words), env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"exit status {done.returncode} with {' '.join(words)}\n{done.stderr[-4000:]}")
        (run,) = (output / "detect").iterdir()
        return Speed.of(run)

    def answer(self, question: Question) -> dict[str, list[Speed]]:
        """Run every value as often as repeats are asked for, in turn."""
        found: dict[str, list[Speed]] = {value: [] for value in question.values}
        for _ in range(self.options.repeats):
            for value in question.values:
                found[value].append(self.speed(*question.fixed, f"{question.key}={value}"))
        return found


def loading(speed: Speed) -> float | None:
    """Return the seconds of stepping for each second of waiting; None where hardly anything was waited for."""
    return (1 - speed.wait_share) / speed.wait_share if speed.wait_share > 0.001 else None


def gains(speeds: Sequence[float | None], reference: Sequence[float | None]) -> list[float | None]:
    """Return by which part each is more than its reference."""
    ratios = [ratio(one, other) for one, other in zip(speeds, reference, strict=True)]
    return [None if value is None else value - 1 for value in ratios]


def show(question: Question, found: dict[str, list[Speed]]) -> None:
    """Print one question's table."""
    first = found[question.values[0]]
    print(f"{question.key}; said: {question.claim}")
    print(
        "\n| | images/s | gain | waiting | loading, gain | CPU ms per image | GPU busy | GPU, GiB | main memory, GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for value, speeds in found.items():
        cells = [
            middle([s.images_per_s for s in speeds], ".1f"),
            middle(gains([s.images_per_s for s in speeds], [s.images_per_s for s in first]), "+.0%"),
            middle([s.wait_share for s in speeds], ".1%"),
            middle(gains([loading(s) for s in speeds], [loading(s) for s in first]), "+.0%"),
            middle([s.cpu_ms for s in speeds], ".0f"),
            middle([s.gpu_util for s in speeds], ".0%"),
            middle([s.gpu_gib for s in speeds], ".1f"),
            middle([s.host_gib for s in speeds], ".1f"),
        ]
        print(f"| {question.key}={value} | {' | '.join(cells)} |")
    print(flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data.yaml of a YOLO set whose files all lie beside it")
    parser.add_argument("--model", default="yolov8n", help="by name, from random weights")
    parser.add_argument("--device", help="cpu, or a GPU's number; default: the first GPU if there is one")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, help="default: the tier's")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", default="", help="only settings that contain this text")
    options = parser.parse_args()
    options.device = options.device or ("0" if detect().gpus else "cpu")
    print(f"`{command_line()}`: {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for question in questions(options.device, detect().cores):
            if options.only in question.key:
                show(question, bench.answer(question))
    return 0


if __name__ == "__main__":
    sys.exit(main())
