"""The built-in classification set: the same bytes every time, never half a set, and pictures that can be learned."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data import demo, demo_classes
from hsr_train.data.class_set import load_classification_set
from hsr_train.data.class_splits import list_folds
from hsr_train.data.demo_classes import NUM_FOLDS, SIDE_PX, draw_object, ensure_demo_classes
from hsr_train.data.demo_objects import CLASSES
from hsr_train.data.folds import write_splits
from hsr_train.data.near_duplicates import near_duplicates
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, RunError

FEW = 8


def contents(home: Path) -> dict[str, str]:
    files = (file for file in sorted(home.rglob("*")) if file.is_file())
    return {file.relative_to(home).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo_classes(tmp_path_factory.mktemp("cache"), num_images=FEW)


def test_ensure_demo_classes_gives_the_same_bytes_each_time(home, tmp_path):
    again = ensure_demo_classes(tmp_path, num_images=FEW)
    assert again.name == home.name and contents(again) == contents(home)


def test_ensure_demo_classes_layout_is_a_divided_set(home):
    assert sorted(folder.name for folder in (home / "raw").iterdir()) == sorted(CLASSES)
    assert all(len(list((home / "raw" / name).iterdir())) == FEW for name in CLASSES)
    assert len(list((home / "splits").iterdir())) == 2 * NUM_FOLDS + 2
    for file in (home / "raw").rglob("*.jpg"):
        assert cv2.imread(str(file)).shape == (SIDE_PX, SIDE_PX, 3)


def test_ensure_demo_classes_splits_are_those_of_mode_split(home, tmp_path):
    before = contents(home / "splits")
    config = ClassifyDataConfig(raw=str(home / "raw"), cache_dir=str(tmp_path))
    try:
        write_splits(config, Decisions())
        assert contents(home / "splits") == before
    finally:
        assert demo.is_whole(home)


def test_ensure_demo_classes_whole_set_is_not_drawn_again(home, monkeypatch):
    def draw(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(demo_classes, "draw_object", draw)
    assert ensure_demo_classes(home.parent, num_images=FEW) == home


def test_ensure_demo_classes_damaged_set_is_drawn_again(home):
    before = contents(home)
    next((home / "raw" / "mug").iterdir()).unlink()
    assert not demo.is_whole(home)
    assert contents(ensure_demo_classes(home.parent, num_images=FEW)) == before


def test_ensure_demo_classes_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_classes, "_divide", interrupt)
    monkeypatch.setattr(
        demo_classes, "draw_object", lambda seed, label, index: np.full((8, 8, 3), label * index, np.uint8)
    )
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_classes(tmp_path, num_images=FEW)
    assert calls and list(tmp_path.iterdir()) == []


def test_ensure_demo_classes_refused_folder_and_missing_library_are_errors_for_the_user(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the built-in set"):
        ensure_demo_classes(tmp_path / "file" / "cache")
    monkeypatch.setattr(demo_classes, "draw_object", lambda *_: np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(InputError, match="hsr_train\\[classify\\]"):
        ensure_demo_classes(tmp_path / "other", num_images=FEW)


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"num_images": 3}])
def test_ensure_demo_classes_arguments_that_make_no_set_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="must not be"):
        ensure_demo_classes(tmp_path, **arguments)


def test_draw_object_depends_on_seed_class_and_index():
    pictures = [draw_object(*key).tobytes() for key in ((1, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert pictures[0] == pictures[1] and len(set(pictures)) == 4


def test_pictures_do_not_look_the_same(home):
    paths = sorted(map(str, (home / "raw").rglob("*.jpg")))
    assert len(near_duplicates(paths, [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths])) == 0


def test_load_demo_is_the_built_in_set_and_says_so(home, monkeypatch):
    monkeypatch.setattr("hsr_train.data.class_set.ensure_demo_classes", lambda *_, **__: home)
    decisions = Decisions()
    config = ClassifyDataConfig(cache_dir=str(home.parent))
    checked = load_classification_set(config, decisions, fold=4, progress=False)
    assert (checked.name, checked.fold, checked.classes) == ("demo", 4, sorted(CLASSES))
    assert checked.warnings == [] and decisions[0].key == "data.path"
    assert list_folds(config) == [0, 1, 2, 3, 4]
    assert json.dumps(checked.record())


def test_split_of_the_built_in_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="data.raw=FOLDER"):
        write_splits(ClassifyDataConfig(cache_dir=str(tmp_path)), Decisions())


def edges(grey: np.ndarray, cells: int = 7, bins: int = 8) -> np.ndarray:
    """Return how strong edges of each direction are in each part of a picture."""
    x, y = (cv2.Sobel(grey, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    direction = np.arctan2(y, x) % np.pi * bins / np.pi
    layers = [np.where(direction.astype(int) % bins == k, np.hypot(x, y), 0) for k in range(bins)]
    small = np.stack([cv2.resize(layer, (cells, cells), interpolation=cv2.INTER_AREA) for layer in layers])
    return np.sqrt(small / small.sum()).ravel()


@pytest.mark.slow
def test_classes_can_be_learned_and_shuffled_ones_cannot(tmp_path):
    from sklearn.linear_model import LogisticRegression

    checked = load_classification_set(ClassifyDataConfig(cache_dir=str(tmp_path)), Decisions(), progress=False)

    def features(split: str) -> np.ndarray:
        return np.array([edges(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) for path in checked.splits[split].images])

    train, targets = features("train"), checked.splits["train"].targets
    held_out = np.concatenate([features("val"), features("test")])
    answers = np.concatenate([checked.splits["val"].targets, checked.splits["test"].targets])
    scores = {}
    for name, labels in (("true", targets), ("shuffled", np.random.default_rng(0).permutation(targets))):
        scores[name] = LogisticRegression(C=30, max_iter=2000).fit(train, labels).score(held_out, answers)
    assert scores["true"] > 0.6 and scores["shuffled"] < 0.35, scores
