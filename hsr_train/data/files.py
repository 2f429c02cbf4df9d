"""Every image and label file of a set, read in parallel or trusted from the index.

`yolo` calls `examine_files` with the files that `listing` found and the index of `cache`; `images` and `labels` judge
the contents. Threads, since reading, hashing and decoding release Python's lock.
"""

# Paths are plain strings here: pathlib takes several times as long, which counts at 100,000 files.
# ruff: noqa: PTH116, PTH123

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from hsr_train.data.cache import ABSENT, Known, Stamp
from hsr_train.data.images import examine_image, quiet_decoder
from hsr_train.data.labels import Fault, LabelRules, Labels, no_labels, parse_labels

_CHUNK = 32


def num_threads() -> int:
    """Return how many threads read: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def examine_files(
    pairs: Mapping[str, str], known: dict[str, Known], rules: LabelRules, *, rehash: bool, progress: bool
) -> int:
    """Bring `known` up to date for the given images.

    Args:
        pairs: Image path to label path; absolute.
        known: The index; changed in place, and complete up to where it got if this is interrupted.
        rules: What label lines are judged by.
        rehash: Trust nothing: read every file.
        progress: Show a bar on a terminal if it takes longer than a second.

    Returns:
        How many images were read, not trusted.
    """
    items = list(pairs.items())
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    stop = threading.Event()
    num_read = 0

    def work(chunk: list[tuple[str, str]]) -> list[tuple[str, Known, bool]]:
        return [
            (image, *_examine(image, label, known.get(image), rules, rehash))
            for image, label in chunk
            if not stop.is_set()
        ]

    executor = ThreadPoolExecutor(max_workers=num_threads(), thread_name_prefix="data-check")
    bar = tqdm(total=len(items), desc="Checking images", unit="image", delay=1, disable=None if progress else True)
    try:
        with quiet_decoder(), bar:
            for done in executor.map(work, chunks):
                for image, entry, was_read in done:
                    known[image] = entry
                    num_read += was_read
                bar.update(len(done))
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
    return num_read


def _examine(image: str, label: str, entry: Known | None, rules: LabelRules, rehash: bool) -> tuple[Known, bool]:
    """Return what is known about an image now, and whether the image was read."""
    if rehash:
        entry = None
    if entry and _stamp(image) == entry.image_stamp:
        read_image = False
        image_part = (entry.image_stamp, entry.image_hash, entry.shape, entry.image_fault)
    else:
        read_image = True
        image_part = _read_image(image)
    if entry and entry.label_path == label and _stamp(label) == entry.label_stamp:
        if not read_image:
            return entry, False
        label_part = (entry.label_stamp, entry.label_hash, entry.labels)
    else:
        label_part = _read_label(label, rules)
    return Known(*image_part, label, *label_part), read_image


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


def _read(path: str) -> tuple[bytes, Stamp]:
    """Read a file, with the stamp that it had before the first byte was read."""
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        return file.read(), (status.st_size, status.st_mtime_ns)


def _read_image(path: str) -> tuple[Stamp, str, tuple[int, int], str]:
    try:
        raw, stamp = _read(path)
    except OSError as err:
        # No real file has this stamp, so the next start tries again.
        return (-2, -2), "", (0, 0), f"cannot be read: {err.strerror}"
    shape, fault = examine_image(raw, path.rpartition(".")[2].lower())
    return stamp, hashlib.sha256(raw).hexdigest(), shape, fault


def _read_label(path: str, rules: LabelRules) -> tuple[Stamp, str, Labels]:
    try:
        raw, stamp = _read(path)
    except FileNotFoundError:
        return ABSENT, "", no_labels()
    except OSError as err:
        labels = no_labels()
        labels.faults.append(Fault(0, "", f"cannot be read: {err.strerror}"))
        return (-2, -2), "", labels
    return stamp, hashlib.sha256(raw).hexdigest(), parse_labels(raw, rules)
