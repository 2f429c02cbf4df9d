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
) -> None:
    """Bring `known` up to date for the given images.

    Args:
        pairs: Image path to label path; absolute.
        known: The index; changed in place, and complete up to where it got if this is interrupted.
        rules: What label lines are judged by.
        rehash: Trust nothing: read every file.
        progress: Show a bar on a terminal if it takes longer than a second.
    """
    items = list(pairs.items())
    chunks = [items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)]
    stop = threading.Event()

    def work(chunk: list[tuple[str, str]]) -> dict[str, Known]:
        changed = {}
        for image, label in chunk:
            if stop.is_set():
                break
            entry = None if rehash else known.get(image)
            same_image = entry is not None and _stamp(image) == entry.image_stamp
            same_label = entry is not None and entry.label_path == label and _stamp(label) == entry.label_stamp
            if not (same_image and same_label):
                changed[image] = _examine(
                    image, label, entry if same_image else None, entry if same_label else None, rules
                )
        return changed

    executor = ThreadPoolExecutor(max_workers=num_threads(), thread_name_prefix="data-check")
    bar = tqdm(total=len(items), desc="Checking images", unit="image", delay=1, disable=None if progress else True)
    try:
        with quiet_decoder(), bar:
            for chunk, changed in zip(chunks, executor.map(work, chunks), strict=True):
                known.update(changed)
                bar.update(len(chunk))
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _examine(image: str, label: str, same_image: Known | None, same_label: Known | None, rules: LabelRules) -> Known:
    """Read what is not the same as before."""
    image_part = (
        (same_image.image_stamp, same_image.image_hash, same_image.shape, same_image.image_fault)
        if same_image
        else _read_image(image)
    )
    label_part = (
        (same_label.label_stamp, same_label.label_hash, same_label.labels) if same_label else _read_label(label, rules)
    )
    return Known(*image_part, label, *label_part)


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
