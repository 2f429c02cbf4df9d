"""Distractors, light and shadow change what an image shows, and never what its labels say."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cutouts import BLUE, RED, cutout, ellipse, make_backgrounds, make_cutouts, write

from hsr_train.config.schema import SyntheticConfig
from hsr_train.errors import InputError
from hsr_train.synthesis import Composed, Composer, FolderBackgrounds, ObjectBank, TrainingBackgrounds
from hsr_train.synthesis.backgrounds import Scene
from hsr_train.synthesis.paste import LEVELS_PER_PX, edge_levels, transform
from hsr_train.synthesis.preview import contact_sheet

NAMES = ["a", "b"]
SIDE = 160
GREEN, GRAY = (0, 255, 0), (128, 128, 128)
PLAIN: dict[str, Any] = {"color_match": 0.0, "blend": ["hard"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_cutouts(tmp_path / "cutouts")
    make_backgrounds(tmp_path / "backgrounds")
    write(tmp_path / "distractors" / "lamp" / "one.png", cutout(GREEN))
    write(tmp_path / "distractors" / "two.png", cutout(GREEN, (50, 50)))
    return tmp_path


def distractors_of(folder: Path, **more: Any) -> ObjectBank:
    return ObjectBank.read(
        folder / "distractors", NAMES, cache_dir=folder / "cache", side=SIDE, distractors=True, **more
    )


def composer_of(folder: Path, *, hiding: bool = False, seed: int = 0, **settings: Any) -> Composer:
    cache = folder / "cache"
    return Composer(
        ObjectBank.read(folder / "cutouts", NAMES, cache_dir=cache, side=SIDE),
        FolderBackgrounds.read(folder / "backgrounds", cache_dir=cache, side=SIDE),
        SyntheticConfig(**settings),
        side=SIDE,
        seed=seed,
        distractors=distractors_of(folder) if hiding else None,
    )


def bounds(mask: np.ndarray) -> list[float]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, x + width, y + height]


def same_labels(one: Composed, other: Composed) -> bool:
    return np.array_equal(one.boxes, other.boxes) and np.array_equal(one.classes, other.classes)


# ---- distractors


def test_distractors_hide_others_and_have_no_label(folder: Path) -> None:
    settings = {"objects": [1, 1], "distractors": [2, 2], "max_overlap": 1.0, "max_occlusion": 0.5, **PLAIN}
    composer = composer_of(folder, hiding=True, **settings)
    green, covered, lost = 0, 0, 0
    for index in range(60):
        image, boxes, classes, _ = composer.compose(0, index)
        assert len(boxes) <= 1
        green += bool((image[..., 1] > 127).any())
        lost += len(boxes) == 0
        for box, class_id in zip(boxes, classes, strict=True):
            seen = image[..., 2 if class_id == 0 else 0] > 127
            assert box.tolist() == bounds(seen)
            covered += bool((image[int(box[1]) : int(box[3]), int(box[0]) : int(box[2]), 1] > 127).any())
    assert green == 60 and covered > 5 and 0 < lost < 60


def test_number_of_distractors_is_drawn_within_its_limits(folder: Path) -> None:
    settings = {"objects": [1, 1], "distractors": [0, 2], "max_overlap": 0.0, "truncation": 0.0, "scale": [0.6, 0.6]}
    composer = composer_of(folder, hiding=True, **settings, **PLAIN)
    counts = [
        cv2.connectedComponents((composer.compose(0, index).image[..., 1] > 127).astype(np.uint8))[0] - 1
        for index in range(30)
    ]
    assert set(counts) == {0, 1, 2}


def test_objects_are_the_same_image_by_image_whatever_computes_them(folder: Path) -> None:
    settings = {"light": 0.7, "shadow": 0.5, "distractors": [0, 3]}
    composer = composer_of(folder, hiding=True, **settings)
    images = {index: composer.compose(1, index) for index in range(6)}
    again = pickle.loads(pickle.dumps(composer_of(folder, hiding=True, **settings)))
    for index in reversed(images):
        other = again.compose(1, index)
        assert same_labels(images[index], other) and np.array_equal(images[index].image, other.image)


def test_distractors_are_read_from_any_folders_and_from_none(folder: Path) -> None:
    photo, mask = np.full((90, 90, 3), 9, np.uint8), np.zeros((90, 90), np.uint8)
    mask[10:60, 20:70] = 255
    for place in ("", "chair"):
        write(folder / "distractors" / place / "images" / "x.png", photo)
        write(folder / "distractors" / place / "masks" / "x_mask.png", mask)
    bank = distractors_of(folder)
    assert [file.name for file in bank.files] == ["two.png", "images/x.png", "chair/images/x.png", "lamp/one.png"]
    assert bank.counts == {"distractor": 4}


@pytest.mark.parametrize("name", ["b", "B"])
def test_distractors_of_a_class_of_the_data_are_refused(folder: Path, name: str) -> None:
    write(folder / "distractors" / name / "one.png", cutout(GREEN))
    message = rf"synthetic.distractors_dir \({name}\).*is a class of the data: its objects would have no label"
    with pytest.raises(InputError, match=message):
        distractors_of(folder)


def test_bad_distractors_are_refused_by_their_own_key(folder: Path) -> None:
    write(folder / "distractors" / "lamp" / "flat.png", np.zeros((50, 50, 3), np.uint8))
    with pytest.raises(
        InputError, match=r"synthetic.distractors_dir \(lamp/flat.png\).*has no alpha channel"
    ) as caught:
        distractors_of(folder)
    assert "annotated_dir" not in str(caught.value)
    assert len(distractors_of(folder, skip_bad=True)) == 2
    with pytest.raises(InputError, match=r"synthetic.distractors_dir.*does not exist"):
        ObjectBank.read(folder / "nowhere", NAMES, cache_dir=folder / "cache", distractors=True)
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=r"synthetic.distractors_dir.*holds no images"):
        ObjectBank.read(folder / "empty", NAMES, cache_dir=folder / "cache", distractors=True)


# ---- light and shadow


def test_shadow_darkens_the_ground_and_widens_no_box(folder: Path) -> None:
    make_backgrounds(folder / "backgrounds", colour=(200, 200, 200))
    settings = {"objects": [1, 3], **PLAIN}
    without, with_one = composer_of(folder, **settings), composer_of(folder, shadow=1.0, **settings)
    outside, beyond = 0, 0
    for index in range(30):
        plain, shaded = without.compose(0, index), with_one.compose(0, index)
        assert same_labels(plain, shaded)
        assert (shaded.image <= plain.image).all()
        changed = (shaded.image != plain.image).any(axis=2)
        is_object = (plain.image == 0).any(axis=2)
        for box, class_id in zip(shaded.boxes, shaded.classes, strict=True):
            if len(shaded.boxes) == 1:  # no other's shadow falls on it
                colour = RED if class_id == 0 else BLUE
                assert box.tolist() == bounds((shaded.image == colour).all(axis=2))
        outside += int((changed & ~is_object).sum())
        for x0, y0, x1, y1 in plain.boxes.astype(int):
            more_x, more_y = int(0.5 * (x1 - x0)) + 12, int(0.5 * (y1 - y0)) + 12
            changed[max(y0 - more_y, 0) : y1 + more_y, max(x0 - more_x, 0) : x1 + more_x] = False
        beyond += bool(changed.any() and len(plain.boxes) == 3)
    assert outside > 1000 and beyond == 0


def test_some_objects_have_a_shadow_by_its_probability(folder: Path) -> None:
    make_backgrounds(folder / "backgrounds", colour=(200, 200, 200))
    composer = composer_of(folder, shadow=0.5, objects=[1, 1], **PLAIN)
    images = [composer.compose(0, index).image for index in range(40)]
    shaded = [bool(((image[..., 0] < 195) & (image[..., 0] == image[..., 2])).any()) for image in images]
    assert 8 < sum(shaded) < 32


def test_light_is_the_same_on_all_objects_of_an_image(folder: Path) -> None:
    """Gray objects: their brighter side is the same one within an image, and another one in other images."""
    for path in (folder / "cutouts").rglob("*.png"):
        path.unlink()
    for name in NAMES:
        write(folder / "cutouts" / name / "gray.png", cutout(GRAY, (60, 60)))
    settings = {"objects": [2, 2], "max_overlap": 0.0, "truncation": 0.0, **PLAIN}
    dark, lit = composer_of(folder, **settings), composer_of(folder, light=1.0, **settings)
    sides, levels = [], []
    for index in range(25):
        plain, image = dark.compose(0, index), lit.compose(0, index)
        assert same_labels(plain, image)
        assert set(np.unique(plain.image)) <= {0, 128}
        ramps = []
        for x0, y0, x1, y1 in image.boxes.astype(int):
            part = image.image[y0:y1, x0:x1, 0].astype(float)
            part[part == 0] = np.nan
            half = (x1 - x0) // 2
            ramps.append(np.nanmean(part[:, -half:]) - np.nanmean(part[:, :half]))
            levels.append(np.nanmean(part))
            assert np.nanmean(part[: (y1 - y0) // 2]) > np.nanmean(part[(y1 - y0) // 2 :])  # light comes from above
        if len(ramps) == 2 and min(np.abs(ramps)) > 5:
            assert np.sign(ramps[0]) == np.sign(ramps[1])
            sides.append(float(np.sign(ramps[0])))
    assert len(set(sides)) == 2 and max(levels) - min(levels) > 20


# ---- edges


def test_alpha_tells_the_distance_from_the_edge() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 255
    row = edge_levels(mask)[30].astype(int)
    assert row[20] - row[19] == LEVELS_PER_PX and row[19] <= 127 < row[20]
    assert (np.diff(row[6:30]) == LEVELS_PER_PX).all() and row[0] == row[-1] == 0
    assert ((edge_levels(mask) > 127) == (mask > 0)).all()


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 2.0])
def test_sized_object_keeps_its_shape(scale: float) -> None:
    mask = cv2.copyMakeBorder(ellipse((100, 60)), 6, 6, 6, 6, cv2.BORDER_CONSTANT, value=0)
    pixels = np.dstack([np.full((*mask.shape, 3), 90, np.uint8), edge_levels(mask)])
    sprite = transform(pixels, scale, 0.0, False)
    assert sprite is not None
    area = int((sprite.alpha > 127).sum())
    assert area == pytest.approx(int((mask > 0).sum()) * scale**2, rel=0.06)
    turned = transform(pixels, scale, 90.0, True)
    assert turned is not None and abs(turned.width - sprite.height) <= 1 and abs(turned.height - sprite.width) <= 1


# ---- preview


def test_preview_shows_outlines_also_beside_objects_without(folder: Path) -> None:
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    path = write(folder / "real.png", image)
    labels = np.array([[1, 0.5, 0.5, 0.3, 0.3]], np.float32)
    scenes = TrainingBackgrounds([path], [labels], [[]])
    bank = ObjectBank.read(folder / "cutouts", NAMES, cache_dir=folder / "cache", side=SIDE)
    composer = Composer(bank, scenes, SyntheticConfig(**PLAIN), side=SIDE)
    boxes_only = contact_sheet(composer, [], NAMES)
    composer.outlines = True
    assert not composer.compose(0, 0).outlines
    composer.partial_outlines = True
    one = composer.compose(0, 0)
    assert len(one.outlines) == len(one.boxes) > 1 and not len(one.outlines[0]) and len(one.outlines[-1])
    both = contact_sheet(composer, [], NAMES)
    assert both.shape == boxes_only.shape and (both != boxes_only).any(axis=2).sum() > 1000


def test_preview_fills_the_outlines_of_real_objects(folder: Path) -> None:
    image = np.full((SIDE, SIDE, 3), 200, np.uint8)
    corners = np.array([[40, 40], [120, 40], [120, 120], [40, 120]], np.float32)
    box, classes = np.array([[40, 40, 120, 120]], np.float32), np.zeros(1, np.int64)
    with_one = contact_sheet(composer_of(folder), [Scene(image, box, classes, [corners])], NAMES)
    without = contact_sheet(composer_of(folder), [Scene(image, box, classes, [])], NAMES)
    changed = np.argwhere((with_one != without).any(axis=2))
    assert len(changed) > 0.9 * (2 * 80) ** 2  # a tile has 320 pixels
