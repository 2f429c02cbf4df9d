"""The built-in demo set: household scenes as a robot's head camera sees them, drawn on the spot, nothing downloaded.

Here the set is planned, the drawing shared out and the finished folder put in its place; `demo_draw` writes the files,
`demo_scene` composes a picture from `demo_rooms`, `demo_objects` and `demo_clutter`. Below them is a small ray caster:
`demo_vectors`, `demo_shapes`, `demo_textures`, `demo_things`, `demo_camera` and `demo_light`.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import astuple
from pathlib import Path

from hsr_train.data.demo_draw import Plan, draw_share, folders
from hsr_train.data.demo_objects import CLASSES
from hsr_train.errors import RunError
from hsr_train.run.atomic import DISK_ERRORS, describe_disk_error, write_json

log = logging.getLogger(__name__)

MARKER = "complete.json"  # written last; lists every file with its size
FEW_SHOTS = 10  # training pictures of each class in few.yaml
_ABANDONED_S = 3600  # a draft this old belongs to no living process
_PICTURES_PER_WORKER = 16  # fewer are not worth the start of a process

_README = """\
The built-in demo set of hsr_train
==================================

Household scenes with six classes of objects ({classes}),
drawn by hsr_train's own generator (seed {seed}); nothing here is a photograph.

  data.yaml        the YOLO data set: images/ and labels/, {num_train} training and {num_val} validation pictures.
                   A box encloses what is visible of an object. Objects without a label are look-alikes and clutter.
  few.yaml         the same with few training pictures (few.txt): {few_shots} of each class, and the others in them
  annotated/       {num_cutouts} pictures per class of one object alone, with its mask (for copy-paste synthesis)
  backgrounds/     {num_backgrounds} scenes without any object of the six classes
  {marker}    lists every file; a set that lacks one is drawn again

This folder is a cache. It may be deleted at any time; hsr_train draws it again when it is needed.
"""


def ensure_demo_set(
    cache_root: Path,
    *,
    seed: int = 42,
    num_train: int = 240,
    num_val: int = 60,
    num_cutouts: int = 14,
    num_backgrounds: int = 40,
    workers: int | None = None,
) -> Path:
    """Return the `data.yaml` of the demo set, drawing the set first where it is not there whole.

    The same arguments give the same bytes, whatever the number of workers (on one version of numpy and OpenCV). The
    set is drawn into a folder beside its place and renamed, so several processes may ask for it at the same time, and
    one that is killed leaves no half set.

    Args:
        cache_root: Folder for the set's own folder; created if need be.
        seed: Of all pictures; 0 or more.
        num_train: Training images.
        num_val: Validation images.
        num_cutouts: Annotated cut-outs per class.
        num_backgrounds: Empty scenes.
        workers: Processes that draw; None: one per usable core.

    Returns:
        Absolute path of `data.yaml`; beside it lie `few.yaml`, `annotated/` and `backgrounds/`.

    Raises:
        RunError: The disk refused, or a drawing process ended before its time.
    """
    plan = Plan(seed, num_train, num_val, num_cutouts, num_backgrounds)
    if min(astuple(plan)) < 0 or not num_train or not num_val:
        raise ValueError(f"seed and counts must not be negative, training and validation images not 0: {plan}")
    root = Path(cache_root).expanduser().absolute()
    home = root / plan.name
    if is_whole(home):
        return home / "data.yaml"
    try:
        _clear_drafts(root, plan.name)
        draft = root / f".{plan.name}.draft-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _fill(draft, plan, workers if workers is not None else _usable_cores())
            _put_in_place(draft, home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunError(f"the demo set: {describe_disk_error(Path(error.filename or home), error)}") from error
    return home / "data.yaml"


def is_whole(home: Path) -> bool:
    """Return whether a folder holds a finished set: every file that its marker lists is there with its size."""
    try:
        files = json.loads((home / MARKER).read_text(encoding="utf-8"))["files"]
        return bool(files) and all((home / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no marker, a damaged one, or a file is missing


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fill(draft: Path, plan: Plan, workers: int) -> None:
    """Draw a whole set into a new folder, the marker last."""
    start = time.monotonic()
    num_pictures = len(plan.pictures())
    num_shares = max(1, min(workers, num_pictures // _PICTURES_PER_WORKER))
    log.info("Drawing the built-in demo set, %d pictures, into %s", num_pictures, draft.parent / plan.name)
    for folder in folders(plan):
        (draft / folder).mkdir(parents=True, exist_ok=True)
    if num_shares == 1:
        draw_share(draft, plan, 0, 1)
    else:
        _draw_in_processes(draft, plan, num_shares)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    for name, train in (("data.yaml", "images/train"), ("few.yaml", "few.txt")):
        (draft / name).write_text(
            "# The built-in demo set of hsr_train: drawn household scenes. See README.txt.\n"
            f"path: .\ntrain: {train}\nval: images/val\nnc: {len(CLASSES)}\nnames:\n{names}",
            encoding="utf-8",
        )
    (draft / "few.txt").write_text("".join(f"./images/train/{n}.jpg\n" for n in _few(draft)), encoding="utf-8")
    facts = dict(zip(Plan.__dataclass_fields__, astuple(plan), strict=True))
    readme = _README.format(classes=", ".join(CLASSES), marker=MARKER, few_shots=FEW_SHOTS, **facts)
    (draft / "README.txt").write_text(readme, encoding="utf-8")
    sizes = {str(f.relative_to(draft).as_posix()): f.stat().st_size for f in sorted(draft.rglob("*")) if f.is_file()}
    write_json(draft / MARKER, {**facts, "files": sizes})
    log.info("Drew the built-in demo set in %.1f s, %.1f MB", time.monotonic() - start, sum(sizes.values()) / 1e6)


def _few(draft: Path) -> list[str]:
    """Return the first training pictures that a class still lacked when its turn came, until none lacks any."""
    chosen, shots = [], Counter[str]()
    for file in sorted((draft / "labels" / "train").iterdir()):
        seen = {line.split()[0] for line in file.read_text(encoding="ascii").splitlines()}
        if any(shots[label] < FEW_SHOTS for label in seen):
            chosen.append(file.stem)
            shots.update(seen)
    return chosen or ["demo_00000"]  # a set may be so small that nothing in it has a label


def _draw_in_processes(draft: Path, plan: Plan, num_shares: int) -> None:
    """Let processes draw one share each. Plain processes, since a script that calls us need not guard its main part."""
    command = [sys.executable, "-m", "hsr_train.data.demo_draw", str(draft), *map(str, astuple(plan))]
    home = Path(__file__).resolve().parents[2]  # where -m finds the package
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for share in range(num_shares):
            order = [*command, str(share), str(num_shares)]
            processes.append(subprocess.Popen(order, cwd=home, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE))
        for process in processes:
            _, complaint = process.communicate()
            if process.returncode:
                last = (complaint.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise RunError(f"drawing the demo set failed (exit status {process.returncode}): {last}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stderr:
                process.stderr.close()


def _put_in_place(draft: Path, home: Path) -> None:
    """Rename a finished draft to its place, unless another process was faster; a broken set there gives way."""
    for _ in range(5):
        try:
            draft.rename(home)
            return
        except OSError:
            if is_whole(home):
                return
            if not home.exists():
                raise
        rubbish = draft.with_name(f"{draft.name}-old")
        home.rename(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)
    raise RunError(f"the demo set could not be put into {home}: other processes keep changing that folder")


def _clear_drafts(root: Path, name: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for draft in root.glob(f".{name}.draft-*"):
        try:
            old = time.time() - draft.stat().st_mtime > _ABANDONED_S
        except FileNotFoundError:  # its process has just finished
            continue
        if old:
            shutil.rmtree(draft, ignore_errors=True)
