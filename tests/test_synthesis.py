"""Composed images are functions of (seed, epoch, index), their boxes are exact, and bad input is named."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cutouts import BLUE, RED, cutout, ellipse, make_backgrounds, make_cutouts, write
from PIL import Image as PillowImage

from hsr_train.config.schema import SyntheticConfig
from hsr_train.config.schema.synthetic import BLENDS
from hsr_train.errors import InputError
from hsr_train.synthesis import Composed, Composer, FolderBackgrounds, ObjectBank, TrainingBackgrounds
from hsr_train.synthesis.composer import class_chances
from hsr_train.synthesis.paste import blend, match_colour

NAMES = ["a", "b"]
SIDE = 160


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_cutouts(tmp_path / "cutouts")
    make_backgrounds(tmp_path / "backgrounds")
    return tmp_path


def bank_of(folder: Path, **more: Any) -> ObjectBank:
    return ObjectBank.read(folder / "cutouts", NAMES, cache_dir=folder / "cache", side=SIDE, **more)


def backgrounds_of(folder: Path, **more: Any) -> FolderBackgrounds:
    return FolderBackgrounds.read(folder / "backgrounds", cache_dir=folder / "cache", side=SIDE, **more)


def composer_of(folder: Path, seed: int = 0, **settings: Any) -> Composer:
    config = SyntheticConfig(**settings)
    return Composer(bank_of(folder), backgrounds_of(folder), config, side=SIDE, seed=seed)


def digest(one: Composed) -> str:
    parts = (one.image, one.boxes, one.classes)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def bounds(mask: np.ndarray) -> list[float]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, x + width, y + height]


# ---- composition


def test_image_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(5)]
    composer = composer_of(folder)
    first = {key: digest(composer.compose(*key)) for key in keys}
    again = pickle.loads(pickle.dumps(composer_of(folder)))
    assert {key: digest(again.compose(*key)) for key in reversed(keys)} == first
    other = composer_of(folder, seed=1)
    assert len({*first.values(), *(digest(other.compose(*key)) for key in keys)}) == 2 * len(keys)


@pytest.mark.parametrize("rotation", [0, 15, 180])
def test_box_is_tight_around_a_single_object(folder: Path, rotation: float) -> None:
    composer = composer_of(folder, objects=[1, 1], rotation=rotation, color_match=0.0, blend=["hard"])
    for index in range(20):
        image, boxes, _, _ = composer.compose(0, index)
        assert boxes.tolist() == [bounds(image.any(axis=2))]


def test_boxes_are_tight_around_what_is_visible(folder: Path) -> None:
    """Colours tell the classes apart; what is hidden in front of the other widens no box."""
    settings = {"objects": [2, 2], "max_overlap": 1.0, "color_match": 0.0, "blend": ["hard"], "balance": "uniform"}
    composer = composer_of(folder, **settings)
    looked_at = 0
    for index in range(60):
        image, boxes, classes, _ = composer.compose(0, index)
        if sorted(classes.tolist()) != [0, 1]:
            continue
        looked_at += 1
        for box, class_id in zip(boxes, classes, strict=True):
            channel = image[..., 2 if class_id == 0 else 0]
            assert box.tolist() == bounds(channel > 127)
    assert looked_at > 10


def count_unlabelled(folder: Path, hidden: str) -> int:
    """Number of images that show a colour without a label of its class."""
    settings = {"objects": [4, 4], "max_overlap": 1.0, "max_occlusion": 0.1, "scale": [1.0, 1.0], "truncation": 0.0}
    composer = composer_of(folder, hidden=hidden, color_match=0.0, blend=["hard"], **settings)
    found = 0
    for index in range(40):
        image, boxes, _, _ = composer.compose(0, index)
        left = image.any(axis=2)
        for x0, y0, x1, y1 in boxes.astype(int):
            left[y0:y1, x0:x1] = False
        found += bool(left.any())
    return found


def test_object_that_is_hidden_too_much_loses_its_label_and_its_pixels(folder: Path) -> None:
    assert count_unlabelled(folder, "remove") == 0
    assert count_unlabelled(folder, "keep") > 0


def test_objects_are_cut_off_at_the_border_no_more_than_allowed(folder: Path) -> None:
    touching = 0
    for truncation in (0.0, 0.5):
        composer = composer_of(folder, objects=[3, 3], truncation=truncation)
        for index in range(20):
            boxes = composer.compose(0, index).boxes
            assert (boxes >= 0).all() and (boxes <= SIDE).all()
            touching += bool(truncation and ((boxes[:, :2] == 0) | (boxes[:, 2:] == SIDE)).any())
    assert touching


def test_overlap_of_boxes_is_bounded(folder: Path) -> None:
    composer = composer_of(folder, objects=[8, 8], max_overlap=0.0, truncation=0.0)
    numbers = []
    for index in range(20):
        boxes = composer.compose(0, index).boxes
        numbers.append(len(boxes))
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                shared = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
                assert shared.min() <= 0
    assert max(numbers) > 1


def test_object_larger_than_the_image_is_made_smaller(folder: Path) -> None:
    write(folder / "cutouts" / "a" / "huge.png", cutout(RED, (900, 700)))
    composer = composer_of(folder, objects=[1, 1], scale=[9.0, 10.0], truncation=0.0)
    for index in range(5):
        boxes = composer.compose(0, index).boxes
        assert len(boxes) == 1 and (boxes[0, 2:] - boxes[0, :2]).max() < SIDE


def test_object_has_the_size_that_it_had_in_its_photo(folder: Path) -> None:
    """In a photo of 120 pixels half the side; in an image of 160 pixels half the side again."""
    settings = {"objects": [1, 1], "scale": [1.0, 1.0], "rotation": 0.0, "truncation": 0.0}
    composer = composer_of(folder, **settings)
    composed = [composer.compose(0, index) for index in range(30)]
    sizes = [one.boxes[0, 2:] - one.boxes[0, :2] for one in composed if one.classes.tolist() == [1]]
    assert sizes and all(np.abs(size - SIDE / 2).max() <= 2 for size in sizes)


# ---- training images as backgrounds


def real_scene(folder: Path, polygons: bool) -> TrainingBackgrounds:
    """One image with a green square of 60 pixels in its middle."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[50:110, 50:110] = (0, 255, 0)
    path = write(folder / "real.png", image)
    corners = np.array([[50, 50], [109, 50], [109, 109], [50, 109]], np.float32) / SIDE
    labels = np.array([[1, 80 / SIDE, 80 / SIDE, 60 / SIDE, 60 / SIDE]], np.float32)
    return TrainingBackgrounds([path], [labels], [[corners] if polygons else []])


@pytest.mark.parametrize("polygons", [False, True])
def test_objects_of_a_background_keep_tight_boxes_or_lose_them(folder: Path, polygons: bool) -> None:
    settings: dict[str, Any] = {"objects": [3, 3], "max_overlap": 1.0, "color_match": 0.0, "blend": ["hard"]}
    config = SyntheticConfig(max_occlusion=0.5, **settings)
    composer = Composer(bank_of(folder), real_scene(folder, polygons), config, side=SIDE, outlines=polygons)
    lost, shrunk = 0, 0
    for index in range(80):
        image, boxes, _, outlines = composer.compose(0, index)
        seen = image[..., 1] > 127
        share = seen.sum() / 60**2
        own = [box for box in boxes.tolist() if image[int(box[1]) : int(box[3]), int(box[0]) : int(box[2]), 1].any()]
        green = [box for box in own if box == bounds(seen)] if seen.any() else []
        assert bool(green) == (share >= 0.5), (index, share)
        lost += share < 0.5
        shrunk += share >= 0.5 and bounds(seen) != [50, 50, 110, 110]
        assert len(outlines) == (len(boxes) if polygons else 0)
        for box, points in zip(boxes, outlines, strict=False):
            assert np.abs(np.hstack([points.min(0), points.max(0) + 1]) - box).max() <= 1
    assert lost and shrunk


def test_training_image_is_not_changed_by_what_is_pasted(folder: Path) -> None:
    scenes, kept = real_scene(folder, False), np.zeros((SIDE, SIDE, 3), np.uint8)
    scenes.load = lambda number, side: kept
    Composer(bank_of(folder), scenes, SyntheticConfig(), side=SIDE).compose(0, 0)
    assert not kept.any()


# ---- colours and edges


@pytest.mark.parametrize("mode", BLENDS)
def test_blending_leaves_the_surroundings_and_shows_the_object(mode: str) -> None:
    alpha = ellipse((80, 60))
    noise = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    place, colours = np.full((80, 60, 3), 90, np.uint8), np.maximum(noise, 60)
    blend(place, colours, alpha, mode, 0.5)
    far = cv2.dilate(alpha, np.ones((13, 13), np.uint8)) == 0
    assert (place[far] == 90).all()
    inner = cv2.erode(alpha, np.ones((21, 21), np.uint8)) > 0
    assert np.corrcoef(place[inner].ravel(), colours[inner].ravel())[0, 1] > 0.95
    assert (np.array_equal(place[inner], colours[inner])) == (mode != "poisson")


def test_colour_match_moves_the_mean_towards_the_place() -> None:
    colours, alpha = np.full((40, 40, 3), (40, 40, 200), np.uint8), np.full((40, 40), 255, np.uint8)
    place = np.full((40, 40, 3), (60, 180, 60), np.uint8)
    distances = [
        float(np.abs(match_colour(colours, alpha, place, strength).astype(int) - place).mean())
        for strength in (0.0, 0.5, 1.0)
    ]
    assert distances[0] > distances[1] > distances[2]
    assert np.abs(match_colour(colours, alpha, place, 0.0).astype(int) - colours).max() <= 3


# ---- balance


def test_balance_sets_how_often_a_class_is_drawn(folder: Path) -> None:
    bank = bank_of(folder)
    for balance, share in (("none", 2 / 3), ("uniform", 1 / 2), ("inverse", 10 / 11)):
        chances = class_chances(bank, balance, [0, 9])
        assert chances[bank.classes == 0].sum() / chances.sum() == pytest.approx(share)


# ---- the bank


def test_bank_holds_what_is_accepted_and_counts_what_is_not(folder: Path) -> None:
    write(folder / "cutouts" / "a" / "narrow.png", cutout(RED, (60, 30)))
    few = np.dstack([np.full((60, 60, 3), 9, np.uint8), np.zeros((60, 60), np.uint8)])
    cv2.line(few, (0, 0), (59, 59), (9, 9, 9, 255), 1)
    write(folder / "cutouts" / "a" / "few.png", few)
    bank = bank_of(folder)
    assert bank.counts == {"a": 2, "b": 1}
    assert bank.rejected == {
        "a/few.png": "has fewer than 100 mask pixels",
        "a/narrow.png": "is narrower than 32 pixels",
    }


def test_colours_around_an_object_are_those_of_its_edge(folder: Path) -> None:
    """The photo is green around the blue object: no soft edge may show it."""
    bank = bank_of(folder)
    number = bank.classes.tolist().index(1)
    assert (bank.pixels[number][..., :3] == BLUE).all()


@pytest.mark.parametrize(
    "pixels",
    [cutout(RED).astype(np.uint16) * 257, np.dstack([np.full((60, 40), 80, np.uint8)] * 3 + [ellipse()])],
    ids=["16 bit", "grey"],
)
def test_cutout_of_another_depth_is_read(folder: Path, pixels: np.ndarray) -> None:
    write(folder / "cutouts" / "a" / "other.png", pixels)
    assert bank_of(folder).counts["a"] == 3


@pytest.mark.parametrize("mode", ["CMYK", "L", "I;16", "RGBA", "P"])
def test_background_of_any_colour_model_is_read(folder: Path, mode: str) -> None:
    path = folder / "backgrounds" / ("x.jpg" if mode == "CMYK" else "x.png")
    image = PillowImage.new("RGB" if mode == "P" else mode, (90, 70))
    (image.convert("P") if mode == "P" else image).save(path)
    assert len(backgrounds_of(folder)) == 4


def test_bank_is_decoded_once_and_shared_by_its_file(folder: Path) -> None:
    bank = bank_of(folder)
    file = bank.pixels.path
    stamp = file.stat().st_mtime_ns
    assert bank_of(folder).pixels.path.stat().st_mtime_ns == stamp
    assert len(pickle.dumps(bank)) < bank.pixels.num_bytes / 2
    with pytest.raises(ValueError, match="read-only"):
        bank.pixels[0][:] = 0


@pytest.mark.parametrize("damage", [b"", b"short"])
def test_damaged_cache_is_made_anew(folder: Path, damage: bytes) -> None:
    before = digest(composer_of(folder).compose(0, 0))
    for file in (folder / "cache" / "synthesis").iterdir():
        file.write_bytes(damage)
    assert digest(composer_of(folder).compose(0, 0)) == before


def test_backgrounds_that_need_too_much_memory_are_decoded_when_needed(folder: Path) -> None:
    kept, each = backgrounds_of(folder), backgrounds_of(folder, limit_bytes=1)
    assert kept.pixels is not None and each.pixels is None
    for seed in range(5):
        one, other = (source.draw(np.random.default_rng(seed), SIDE) for source in (kept, each))
        assert one.image.shape == (SIDE, SIDE, 3) and np.array_equal(one.image, other.image)


def test_changed_cutout_or_mask_changes_the_fingerprint(folder: Path) -> None:
    before = bank_of(folder).fingerprint
    mask = cv2.imread(str(folder / "cutouts" / "b" / "masks" / "photo_mask.png"), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    mask[25:30, 25:90] = 255
    write(folder / "cutouts" / "b" / "masks" / "photo_mask.png", mask)
    assert bank_of(folder).fingerprint != before


def test_nothing_in_the_users_folders_is_written(folder: Path) -> None:
    def state() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns for name in ("cutouts", "backgrounds") for path in (folder / name).rglob("*")
        }

    before = state()
    composer_of(folder).compose(0, 0)
    assert state() == before


# ---- bad input


def remove_mask(root: Path) -> None:
    (root / "b" / "masks" / "photo_mask.png").unlink()


def other_mask(pixels: np.ndarray) -> Callable[[Path], Any]:
    return lambda root: write(root / "b" / "masks" / "photo_mask.png", pixels)


def empty_folder(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


BAD_CUTOUTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no mask": (remove_mask, r"b/images/photo.png\): has no mask: masks/photo_mask.png or masks/photo.png"),
    "mask of another size": (other_mask(np.zeros((9, 9), np.uint8)), "its mask has 9 x 9 pixels, the image 120 x 120"),
    "empty mask": (
        other_mask(np.ones((120, 120), np.uint8)),
        "its mask is empty: no value above 127, the largest is 1",
    ),
    "full mask": (other_mask(np.full((120, 120), 255, np.uint8)), "its mask is full"),
    "class unknown": (lambda root: (root / "a").rename(root / "c"), r"\(c\): is no class of the data, which has a, b"),
    "no alpha": (lambda root: write(root / "a" / "x.png", np.zeros((50, 50, 3), np.uint8)), "has no alpha channel"),
    "damaged": (lambda root: (root / "a" / "x.png").write_bytes(b"nothing"), "x.png.*cannot be decoded"),
    "empty file": (lambda root: (root / "a" / "x.png").write_bytes(b""), "x.png.*cannot be decoded"),
    "empty folder": (empty_folder, "holds no images"),
    "no folder": (lambda root: root.rename(root.with_name("moved")), "does not exist"),
}


@pytest.mark.parametrize("case", BAD_CUTOUTS)
def test_bad_cutouts_are_refused_with_their_names(folder: Path, case: str) -> None:
    spoil, message = BAD_CUTOUTS[case]
    spoil(folder / "cutouts")
    with pytest.raises(InputError, match=message):
        bank_of(folder)


def test_all_unusable_cutouts_are_named_at_once_or_left_out(folder: Path) -> None:
    remove_mask(folder / "cutouts")
    (folder / "cutouts" / "a" / "x.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="2 of 4 files cannot be used") as caught:
        bank_of(folder)
    assert len(caught.value.problems) == 3 and "data.on_bad=skip" in str(caught.value)
    bank = bank_of(folder, skip_bad=True)
    assert bank.counts == {"a": 2} and set(bank.rejected) == {"a/x.png", "b/images/photo.png"}


def test_folder_without_a_single_usable_cutout_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "cutouts" / "a" / "small.png", cutout(RED, (20, 20)))
    with pytest.raises(InputError, match="gives no usable cut-out: 1 x is narrower than 32 pixels"):
        bank_of(tmp_path)


def test_bank_too_large_for_memory_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="need more than 0 MiB of memory"):
        bank_of(folder, limit_bytes=1000)


def test_bad_backgrounds_are_refused(folder: Path) -> None:
    (folder / "backgrounds" / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match="x.jpg.*cannot be decoded"):
        backgrounds_of(folder)
    assert len(backgrounds_of(folder, skip_bad=True)) == 3
    empty_folder(folder / "backgrounds")
    with pytest.raises(InputError, match="holds no images"):
        backgrounds_of(folder)
    (folder / "backgrounds").rmdir()
    with pytest.raises(InputError, match="does not exist"):
        backgrounds_of(folder)


def test_one_small_background_is_enough(folder: Path) -> None:
    empty_folder(folder / "backgrounds")
    write(folder / "backgrounds" / "only.png", np.full((20, 33, 3), 77, np.uint8))
    image = composer_of(folder).compose(0, 0).image
    assert image.shape == (SIDE, SIDE, 3)
