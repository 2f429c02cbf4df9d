"""Cut-outs from training images: by polygons, by GrabCut, by masks; what is left out is counted, bad input is named."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cutouts import BLUE, RED, make_backgrounds, make_cutouts, write
from yolo_sets import SHARED

from hsr_train.config.schema import DataConfig, SyntheticConfig
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError
from hsr_train.synthesis import Composer, FolderBackgrounds, ObjectBank, Photo
from hsr_train.synthesis.cutout_sheet import cutout_sheet

NAMES = ["a", "b"]
SIDE, WIDTH, HEIGHT = 160, 200, 160
Square = tuple[int, int, int, int, int]
"""Class, x0, y0, x1, y1 in pixels."""
RED_ONE, BLUE_ONE = (0, 20, 30, 70, 90), (1, 110, 40, 170, 120)


def drawing(squares: list[Square]) -> np.ndarray:
    """Squares in their class's colour on slightly noisy green."""
    image = np.full((HEIGHT, WIDTH, 3), (40, 160, 40), np.uint8)
    for class_id, x0, y0, x1, y1 in squares:
        image[y0:y1, x0:x1] = (RED, BLUE)[class_id]
    return np.maximum(image, np.random.default_rng(0).integers(0, 20, image.shape, dtype=np.uint8))


def photo(
    folder: Path, squares: list[Square] | None = None, name: str = "photo", pixels: np.ndarray | None = None
) -> Photo:
    """A training image whose labels are the squares, as polygons and as boxes."""
    squares = [RED_ONE, BLUE_ONE] if squares is None else squares
    path = write(folder / "images" / f"{name}.png", drawing(squares) if pixels is None else pixels)
    size = np.array([WIDTH, HEIGHT], np.float32)
    labels, polygons = np.zeros((len(squares), 5), np.float32), []
    for row, (class_id, x0, y0, x1, y1) in zip(labels, squares, strict=True):
        row[:] = (class_id, (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
        polygons.append(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32) / size)
    return Photo(f"images/{name}.png", path, name, HEIGHT, WIDTH, labels, polygons)


def bank_of(folder: Path, photos: list[Photo], masks: str = "polygons", **more: Any) -> ObjectBank:
    return ObjectBank.from_photos(photos, NAMES, masks, **{"cache_dir": folder / "cache", "side": SIDE, **more})


def mask_of(*squares: Square, level: int = 255) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _, x0, y0, x1, y1 in squares:
        mask[y0:y1, x0:x1] = level
    return mask


def given(folder: Path, photos: list[Photo], masks: dict[str, np.ndarray], **more: Any) -> ObjectBank:
    for name, pixels in masks.items():
        write(folder / "masks" / name, pixels)
    return bank_of(folder, photos, "masks_dir", masks_dir=folder / "masks", **more)


def extents(bank: ObjectBank) -> list[tuple[int, float, float]]:
    """Class, width and height of each object in a composed image whose longest side is that of the photo."""
    found = []
    for number, class_id in enumerate(bank.classes.tolist()):
        width, height = cv2.boundingRect(np.where(bank.pixels[number][..., 3] > 127, 255, 0).astype(np.uint8))[2:]
        factor = bank.size_per_side[number] * WIDTH
        found.append((class_id, round(float(width * factor)), round(float(height * factor))))
    return found


# ---- polygons


def test_polygons_become_cutouts_of_their_true_size(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, [photo(tmp_path)], largest_scale=10.0, side=WIDTH)
    assert bank.source == "polygons" and bank.files == [] and bank.left_out == {}
    assert extents(bank) == [(0, 50, 60), (1, 60, 80)]
    for number, (channel, other) in enumerate(((2, 0), (0, 2))):
        colours = bank.pixels[number][..., :3]
        assert (colours[..., channel] == 255).all() and (colours[..., other] < 20).all()


def test_cutout_is_stored_no_larger_than_needed_and_keeps_its_size(tmp_path: Path) -> None:
    bank = bank_of(tmp_path, [photo(tmp_path)], largest_scale=0.5, side=WIDTH)
    assert bank.pixels[0].shape[0] < 45
    assert extents(bank)[0] == pytest.approx((0, 50, 60), abs=2)


def test_objects_that_are_small_or_cut_off_are_left_out_and_counted(tmp_path: Path) -> None:
    squares: list[Square] = [RED_ONE, (0, 100, 10, 125, 60), (1, 0, 100, 60, 140), (1, 80, 100, 130, 160)]
    bank = bank_of(tmp_path, [photo(tmp_path, squares)])
    assert bank.counts == {"a": 1}
    assert bank.left_out == {"is cut off at its photo's border": 2, "is narrower than 32 pixels": 1}
    assert bank.rejected["images/photo.png #2"] == "is narrower than 32 pixels"


def test_lines_that_join_the_parts_of_a_polygon_are_not_pasted(tmp_path: Path) -> None:
    one = photo(tmp_path, [(0, 20, 20, 120, 100)])
    parts = [[20, 20], [60, 20], [60, 100], [20, 100], [20, 60], [80, 60], [80, 100], [120, 100], [120, 20], [80, 20]]
    one.segments = [np.array([*parts, [80, 60], [20, 60]], np.float32) / (WIDTH, HEIGHT)]
    (pixels,) = (bank.pixels[0] for bank in [bank_of(tmp_path, [one], largest_scale=10.0, side=WIDTH)])
    assert not (pixels[:, pixels.shape[1] // 2, 3] > 127).any()


def test_number_of_cutouts_of_a_class_is_bounded_and_the_choice_repeated(tmp_path: Path) -> None:
    photos = [photo(tmp_path, name=str(number)) for number in range(6)]
    bank, again = (bank_of(tmp_path, photos, per_class=4, cache_dir=tmp_path / cache) for cache in ("x", "y"))
    assert bank.counts == {"a": 4, "b": 4}
    assert bank.left_out == {"is not drawn: synthetic.cutouts_per_class=4": 4}
    assert bank.rejected == again.rejected and bank.pixels.num_bytes == again.pixels.num_bytes


def test_bank_of_photos_is_made_once_and_anew_when_labels_change(tmp_path: Path) -> None:
    one = photo(tmp_path)
    bank = bank_of(tmp_path, [one])
    stamp = bank.pixels.path.stat().st_mtime_ns
    assert bank_of(tmp_path, [one]).pixels.path.stat().st_mtime_ns == stamp
    assert len(pickle.dumps(bank)) < bank.pixels.num_bytes / 2
    one.segments[0] = one.segments[0] * np.float32(0.99)
    assert bank_of(tmp_path, [one]).pixels.path != bank.pixels.path


def test_objects_of_photos_are_composed_with_tight_boxes(tmp_path: Path) -> None:
    make_backgrounds(tmp_path / "backgrounds")
    config = SyntheticConfig(objects=[1, 1], color_match=0.0, blend=["hard"], rotation=0.0, truncation=0.0)
    backgrounds = FolderBackgrounds.read(tmp_path / "backgrounds", cache_dir=tmp_path / "cache", side=SIDE)
    composer = Composer(bank_of(tmp_path, [photo(tmp_path)]), backgrounds, config, side=SIDE)
    for index in range(10):
        image, boxes, classes, _ = composer.compose(0, index)
        x, y, width, height = cv2.boundingRect((image[..., 2 if classes[0] == 0 else 0] > 127).astype(np.uint8))
        assert boxes.tolist() == [[x, y, x + width, y + height]]


# ---- GrabCut


def test_grabcut_finds_an_object_within_its_box_and_repeats_itself(tmp_path: Path) -> None:
    """A disc in a box that is wider by six pixels each way."""
    image = drawing([])
    cv2.circle(image, (100, 80), 34, RED, -1)
    one = photo(tmp_path, [(0, 60, 40, 140, 120)], pixels=image)
    banks = [bank_of(tmp_path, [one], "grabcut", cache_dir=tmp_path / name, side=WIDTH) for name in ("x", "y")]
    ((_, width, height),) = extents(banks[0])
    assert abs(width - 69) <= 3 and abs(height - 69) <= 3
    area = float((banks[0].pixels[0][..., 3] > 127).sum() * (banks[0].size_per_side[0] * WIDTH) ** 2)
    assert abs(area / (np.pi * 34**2) - 1) < 0.1
    assert np.array_equal(banks[0].pixels[0], banks[1].pixels[0])


GRABCUT_REFUSALS: dict[str, tuple[np.ndarray, list[Square], str]] = {
    "one colour": (drawing([]), [(0, 60, 40, 140, 120)], "GrabCut"),
    "spot": (drawing([(0, 90, 70, 105, 85)]), [(0, 60, 40, 140, 120)], "GrabCut finds hardly anything of it"),
    "part": (drawing([(0, 62, 42, 98, 118)]), [(0, 60, 40, 140, 120)], "GrabCut finds only a part of its box"),
    "whole": (drawing([(0, 60, 40, 140, 120)]), [(0, 60, 40, 140, 120)], "GrabCut takes nearly all of its box"),
    "border": (drawing([(0, 60, 46, 140, 114)]), [(0, 60, 40, 140, 120)], "GrabCut takes much of its box's border"),
    "photo": (drawing([(0, 0, 0, 100, 160)]), [(0, 0, 0, WIDTH, HEIGHT)], "fills its photo"),
    "crowd": (drawing([RED_ONE]), [RED_ONE, (1, 15, 25, 75, 95)], "lies mostly within other boxes"),
}


@pytest.mark.parametrize("case", GRABCUT_REFUSALS)
def test_grabcut_that_went_wrong_is_left_out_with_its_reason(tmp_path: Path, case: str) -> None:
    pixels, squares, reason = GRABCUT_REFUSALS[case]
    with pytest.raises(InputError, match="synthetic.masks: grabcut: gives no usable cut-out") as caught:
        bank_of(tmp_path, [photo(tmp_path, squares, pixels=pixels)], "grabcut")
    assert reason in str(caught.value)


# ---- masks that the user has


def test_one_mask_for_all_objects_is_cut_by_the_boxes(tmp_path: Path) -> None:
    inner: list[Square] = [(0, 25, 35, 65, 85), (1, 115, 45, 165, 115)]
    for name in ("photo.png", "photo_mask.png"):
        bank = given(tmp_path / name, [photo(tmp_path / name)], {name: mask_of(*inner)}, side=WIDTH)
        assert bank.source == "masks_dir" and [file.name for file in bank.files] == [name]
        assert extents(bank) == [(0, 40, 50), (1, 50, 70)]


def test_masks_of_single_objects_find_their_boxes_whatever_their_numbers(tmp_path: Path) -> None:
    masks = {"photo_7.png": mask_of(RED_ONE), "photo_0.png": mask_of(BLUE_ONE), "photo_3.png": mask_of()}
    bank = given(tmp_path, [photo(tmp_path)], masks, side=WIDTH)
    assert extents(bank) == [(0, 50, 60), (1, 60, 80)]
    assert all((bank.pixels[n][..., channel] == 255).all() for n, channel in ((0, 2), (1, 0)))


def test_mask_that_shows_a_neighbour_too_is_left_out(tmp_path: Path) -> None:
    near: Square = (1, 50, 40, 120, 120)
    alone: Square = (0, 130, 10, 180, 60)
    bank = given(tmp_path, [photo(tmp_path, [RED_ONE, near, alone])], {"photo.png": mask_of(RED_ONE, near, alone)})
    assert bank.counts == {"a": 1}
    assert bank.left_out == {"its mask shows a neighbour too: it needs one of its own, <stem>_<n>.png": 2}


def test_photos_without_a_mask_are_counted(tmp_path: Path) -> None:
    photos = [photo(tmp_path, name=name) for name in ("photo", "photo_1", "other")]
    bank = given(tmp_path, photos, {"photo.png": mask_of(RED_ONE, BLUE_ONE), "photo_1.png": mask_of(RED_ONE)})
    assert bank.counts == {"a": 2, "b": 1}
    assert bank.left_out == {"has no mask in synthetic.masks_dir": 2, "its mask is empty within its box": 1}


def test_changed_mask_changes_the_fingerprint_and_the_bank(tmp_path: Path) -> None:
    first = given(tmp_path, [photo(tmp_path)], {"photo.png": mask_of(RED_ONE, BLUE_ONE)})
    second = given(tmp_path, [photo(tmp_path)], {"photo.png": mask_of((0, 25, 35, 65, 85), BLUE_ONE)})
    assert first.fingerprint != second.fingerprint and first.pixels.path != second.pixels.path


BAD_MASKS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "other size": ({"photo.png": np.zeros((9, 9), np.uint8)}, "its mask has 9 x 9 pixels, the image 200 x 160"),
    "empty": ({"photo.png": mask_of(level=3)}, "its mask is empty"),
    "dark": ({"photo.png": mask_of(RED_ONE, level=3)}, "no value above 127, the largest is 3"),
    "full": ({"photo.png": np.full((HEIGHT, WIDTH), 255, np.uint8)}, "its mask is full"),
    "of another image": ({"elsewhere.png": mask_of(RED_ONE)}, "holds no mask of a training image, such as photo.png"),
    "nowhere": ({}, "does not exist"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_are_refused_with_what_is_wrong(tmp_path: Path, case: str) -> None:
    masks, message = BAD_MASKS[case]
    with pytest.raises(InputError, match=message) as caught:
        given(tmp_path, [photo(tmp_path)], masks)
    assert all(problem.key.startswith("synthetic.masks_dir") for problem in caught.value.problems)


def test_bad_mask_can_be_left_out_with_its_photo(tmp_path: Path) -> None:
    masks = {"photo.png": np.zeros((9, 9), np.uint8), "other.png": mask_of(RED_ONE, BLUE_ONE)}
    photos = [photo(tmp_path), photo(tmp_path, name="other")]
    with pytest.raises(InputError, match="1 of 2 files cannot be used.*|data.on_bad=skip"):
        given(tmp_path, photos, masks)
    bank = given(tmp_path, photos, masks, skip_bad=True)
    assert bank.counts == {"a": 1, "b": 1} and "9 x 9" in bank.rejected["images/photo.png"]


def test_training_images_themselves_are_no_masks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no mask of a training image"):
        bank_of(tmp_path, [photo(tmp_path)], "masks_dir", masks_dir=tmp_path / "images")


def test_mask_that_fits_two_images_of_one_name_is_refused(tmp_path: Path) -> None:
    photos = [photo(tmp_path / "x"), photo(tmp_path / "y")]
    with pytest.raises(InputError, match="fit several training images of the same name: photo.png"):
        given(tmp_path, photos, {"photo.png": mask_of(RED_ONE)})


def test_bank_of_photos_too_large_for_memory_names_the_bound(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cutouts_per_class=125, or a smaller train.imgsz"):
        bank_of(tmp_path, [photo(tmp_path)], limit_bytes=1000)


# ---- the sheet


def test_sheet_shows_cutouts_on_a_checkerboard(tmp_path: Path) -> None:
    bank = ObjectBank.read(make_cutouts(tmp_path / "cutouts"), NAMES, cache_dir=tmp_path / "cache", side=SIDE)
    sheet = cutout_sheet(bank)
    reds, blues = ((sheet == colour).all(axis=2).sum() for colour in (RED, BLUE))
    assert reds > 5000 and blues > 5000
    assert (sheet == 150).all(axis=2).sum() > 1000 and (sheet == 200).all(axis=2).sum() > 1000


def test_sheet_of_many_cutouts_has_as_many_of_each_class_as_fit(tmp_path: Path) -> None:
    photos = [photo(tmp_path, name=str(number)) for number in range(3)]
    few = cutout_sheet(bank_of(tmp_path, photos))
    many = cutout_sheet(bank_of(tmp_path, [photo(tmp_path, name=str(number)) for number in range(160)]))
    assert few.shape[1] == many.shape[1] and few.shape[0] < many.shape[0] < 3000


# ---- real polygons


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_real_polygons_become_cutouts(tmp_path: Path) -> None:
    path = SHARED / "detect" / "coco8_seg" / "data.yaml"
    data = load_detection_set(DataConfig(path=str(path), cache_dir=str(tmp_path)), Decisions())
    train = data.splits["train"]
    parts = zip(train.images, train.hashes, train.shapes.tolist(), train.labels, train.segments, strict=True)
    photos = [Photo(data.relative(str(i)), i, own, *shape, *labels) for i, own, shape, *labels in parts]
    bank = ObjectBank.from_photos(photos, data.names, "polygons", cache_dir=tmp_path, side=320)
    assert {"giraffe", "vase", "potted plant"} <= set(bank.counts)
    assert bank.left_out["is cut off at its photo's border"] >= 2  # the zebra is one
    assert "zebra" not in bank.counts
