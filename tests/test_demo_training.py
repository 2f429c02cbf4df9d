"""What the built-in demo set teaches: enough with its labels, nothing with labels that belong to other images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import hsr_train
from hsr_train.data.demo import ensure_demo_set

pytestmark = pytest.mark.slow


def final_map50(tmp_path: Path, cache: Path, *more: str) -> float:
    """Train preset=demo and return mAP50 of best.pt on the validation images."""
    words = ["preset=demo", f"output_dir={tmp_path}", f"data.cache_dir={cache}", "train.device=cpu", *more]
    return hsr_train.execute(hsr_train.compose(words)).metrics["mAP50"]


def test_demo_preset_reaches_what_it_promises(tmp_path: Path, shared_cache: Path) -> None:
    assert final_map50(tmp_path, shared_cache) >= 0.80


def test_shuffled_labels_teach_nothing(tmp_path: Path, shared_cache: Path) -> None:
    """Each training image gets the labels of another one; validation stays true. Eight epochs teach true ones."""
    root = tmp_path / "shuffled"
    shutil.copytree(ensure_demo_set(shared_cache).parent, root)
    labels = sorted((root / "labels" / "train").glob("*.txt"))
    texts = [label.read_text() for label in labels]
    order = np.random.default_rng(0).permutation(len(labels))
    for label, other in zip(np.array(labels)[order], np.roll(order, 1), strict=True):
        label.write_text(texts[other])
    assert final_map50(tmp_path, shared_cache, f"data.path={root / 'data.yaml'}", "train.epochs=8") < 0.1
