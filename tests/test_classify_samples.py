"""A sample is a function of (seed, epoch, index) alone, and a batch of (seed, epoch, step), whatever loads them."""

from __future__ import annotations

import io
import os
import random
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hsr_train.config.schema.classify import ClassifyAugmentationConfig
from hsr_train.data.images import examine_image
from hsr_train.engines.classification.samples import (
    ImageSamples,
    Mixing,
    make_loader,
    mix,
    normalise,
    part_sizes,
    read_picture,
)
from hsr_train.errors import RunError

SIDE = 32
OFF = ClassifyAugmentationConfig(crop="resize", fliplr=0, brightness=0, contrast=0, saturation=0)
STRONG = ClassifyAugmentationConfig(degrees=20, hue=0.1, policy="randaugment", erasing=0.5, flipud=0.3)
Batches = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven pictures of different shapes, JPEG and PNG, larger and smaller than the square."""
    folder = tmp_path_factory.mktemp("images")
    files = []
    for number in range(11):
        rng = np.random.default_rng(number)
        size = (40 + 11 * number, 150 - 10 * number)
        picture = cv2.resize(rng.integers(0, 255, (6, 7, 3), np.uint8), size, interpolation=cv2.INTER_CUBIC)
        files.append(folder / f"{number}.{'png' if number % 3 == 0 else 'jpg'}")
        cv2.imwrite(str(files[-1]), picture)
    return files


def samples(
    images: list[Path], config: ClassifyAugmentationConfig = STRONG, *, augment: bool = True, **more: Any
) -> ImageSamples:
    targets = [i % 3 for i in range(len(images))]
    return ImageSamples(images, targets, augmentation=config, augment=augment, **{"imgsz": SIDE, "seed": 5, **more})


def epochs(
    images: list[Path],
    first: int = 0,
    last: int = 2,
    *,
    workers: int = 0,
    batch: int = 4,
    at_once: int = 4,
    **more: Any,
) -> list[Batches]:
    """Return the parts of some epochs."""
    options = {key: more.pop(key) for key in ("mixing", "least", "shuffle") if key in more}
    loader = make_loader(
        samples(images, **more),
        batch_size=batch,
        at_once=at_once,
        workers=workers,
        seed=5,
        start_epoch=first,
        **{"shuffle": True, **options},
    )
    try:
        return [[tuple(t.clone() for t in part) for part in loader] for _ in range(first, last)]  # type: ignore[misc]
    finally:
        loader.close()


def joined(parts: Batches) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def equal(one: list[Batches], other: list[Batches]) -> bool:
    return all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(joined(x), joined(y), strict=True)
    )


def by_index(parts: Batches) -> dict[int, torch.Tensor]:
    pictures, _, indices = joined(parts)
    return dict(zip(indices.tolist(), pictures, strict=True))


# ---- what a sample depends on


def test_epoch_gives_every_image_once_with_its_target(images: list[Path]) -> None:
    pictures, targets, indices = joined(epochs(images)[0])
    assert pictures.shape == (11, 3, SIDE, SIDE) and pictures.dtype == torch.uint8
    assert sorted(indices.tolist()) == list(range(11)) != indices.tolist()
    assert targets.tolist() == [i % 3 for i in indices.tolist()]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(images: list[Path], workers: int) -> None:
    assert equal(epochs(images), epochs(images, workers=workers))


@pytest.mark.parametrize(("batch", "at_once"), [(1, 1), (4, 3), (4, 1), (7, 2), (100, 100)])
def test_batch_and_parts_change_no_sample_and_no_order(images: list[Path], batch: int, at_once: int) -> None:
    assert equal(epochs(images), epochs(images, batch=batch, at_once=at_once))


def test_cache_changes_nothing_and_is_never_changed(images: list[Path]) -> None:
    assert equal(epochs(images), epochs(images, cache="ram"))
    kept = samples(images, cache="ram")
    once, again = ([kept[(0, i)][0] for i in range(11)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_cache_needs_no_file_afterwards(tmp_path: Path, images: list[Path]) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(images[0].read_bytes())
    kept = samples([file], cache="ram")
    file.unlink()
    assert kept[(0, 0)][0].shape == (3, SIDE, SIDE)


def test_start_at_a_later_epoch_gives_what_a_longer_run_has_there(images: list[Path]) -> None:
    assert equal(epochs(images, 0, 4)[2:], epochs(images, 2, 4, workers=1))


def test_seed_epoch_and_index_each_give_another_sample(images: list[Path]) -> None:
    one = samples([images[1]] * 2)
    views = [one[(0, 0)][0], one[(1, 0)][0], one[(0, 1)][0], samples([images[1]], seed=6)[(0, 0)][0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_order_is_another_for_each_epoch_and_seed_and_none_without_shuffling(images: list[Path]) -> None:
    orders = [joined(parts)[2].tolist() for parts in epochs(images, 0, 3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert joined(epochs(images, shuffle=False)[1])[2].tolist() == list(range(11))


def test_global_generators_are_neither_read_nor_changed(images: list[Path]) -> None:
    mixing = Mixing(3, mixup=0.4, cutmix=1.0)
    results = []
    for start in (1, 2):
        random.seed(start), np.random.seed(start), torch.manual_seed(start)
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        results.append(epochs(images, mixing=mixing))
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert equal(*results)


# ---- batches and parts


def test_parts_are_nearly_equal_and_no_larger_than_allowed() -> None:
    assert part_sizes(32, 32) == [32]
    assert part_sizes(32, 31) == [16, 16]
    assert part_sizes(10, 4) == [4, 3, 3]
    assert part_sizes(3, 8) == [3]
    assert part_sizes(7, 2, least=2) == [3, 2, 2]
    assert part_sizes(8, 1, least=2) == [2, 2, 2, 2]


def test_parts_do_not_cross_the_border_of_a_batch(images: list[Path]) -> None:
    assert [len(part[0]) for part in epochs(images, batch=4, at_once=3)[0]] == [2, 2, 2, 2, 3]
    loader = make_loader(samples(images), batch_size=4, at_once=3, workers=0, seed=0, shuffle=True)
    assert len(loader) == 5


def test_last_smaller_batch_can_be_left_out(images: list[Path]) -> None:
    assert [len(part[0]) for part in epochs(images, batch=4, least=4)[1]] == [4, 4]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batch_is_the_same_however_it_comes(images: list[Path], kind: str) -> None:
    mixing = Mixing(3, **{kind: 1.0})
    whole = epochs(images, mixing=mixing)
    assert equal(whole, epochs(images, mixing=mixing, at_once=1, workers=2))
    assert not torch.equal(joined(whole[0])[0], joined(epochs(images)[0])[0])
    soft = joined(whole[0])[1]
    assert soft.shape == (11, 3)
    assert torch.allclose(soft.sum(1), torch.ones(11))
    assert ((soft > 0).sum(1) == 2).any()


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Two grey images of 0 and 200."""
    return torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 200.0)]).byte(), torch.tensor([0, 1])


def mixed(step: int = 0, **how: float) -> tuple[torch.Tensor, torch.Tensor]:
    options: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "seed": 1, "epoch": 0, **how}
    return mix(*halves(), num_classes=2, step=step, **options)


def test_mixup_blends_pictures_and_targets_by_the_same_share() -> None:
    pictures, soft = mixed(mixup=1.0)
    assert pictures.dtype == torch.uint8
    share = soft[0, 0].item()
    assert 0 < share < 1 and torch.allclose(soft, torch.tensor([[share, 1 - share], [1 - share, share]]))
    assert (pictures[0] == round(200 * (1 - share))).all()


def test_cutmix_puts_a_rectangle_whose_area_is_the_share() -> None:
    found = []
    for step in range(20):
        pictures, soft = mixed(step, cutmix=1.0)
        assert set(pictures.unique().tolist()) <= {0, 200}
        assert (pictures[0, 0] == 0).float().mean().item() == pytest.approx(soft[0, 0].item())
        found.append(soft[0, 0].item())
    assert len(set(found)) > 5


def test_batch_draws_one_of_mixup_and_cutmix_where_both_are_on() -> None:
    blended = [bool(((p > 0) & (p < 200)).any()) for p, _ in (mixed(s, mixup=1.0, cutmix=1.0) for s in range(20))]
    assert 3 < sum(blended) < 17


def test_mixing_depends_on_seed_epoch_and_step() -> None:
    shares = [mixed(mixup=1.0), mixed(1, mixup=1.0), mixed(mixup=1.0, seed=2), mixed(mixup=1.0, epoch=1)]
    assert len({soft[0, 0].item() for _, soft in shares}) == 4
    assert torch.equal(mixed(mixup=1.0)[0], mixed(mixup=1.0)[0])


def test_mixing_that_is_off_leaves_the_pictures() -> None:
    pictures, soft = mixed()
    assert torch.equal(pictures, halves()[0]) and soft.tolist() == [[1, 0], [0, 1]]


def test_normalised_images_have_the_mean_and_deviation_taken_out() -> None:
    images = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    result = normalise(images, (0.5, 0.5, 0.2), (0.25, 0.5, 0.1))
    assert result.dtype == torch.float32
    assert torch.allclose(result[0, :, 0, 0], torch.tensor([2.0, -1.0, 0.0]), atol=1e-6)


# ---- what is drawn

EFFECT: dict[str, Any] = {
    "crop": "random_resized",
    "fliplr": 1.0,
    "flipud": 1.0,
    "degrees": 45.0,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.3,
    "policy": "trivial",
    "erasing": 1.0,
}
OF_BATCHES = {"mixup", "cutmix"}


def test_every_setting_has_a_test_below() -> None:
    assert {f.name for f in fields(ClassifyAugmentationConfig)} == {*EFFECT, "min_area"} | OF_BATCHES


@pytest.mark.parametrize("key", EFFECT)
def test_setting_changes_the_samples(images: list[Path], key: str) -> None:
    plain, changed = samples(images, OFF), samples(images, replace(OFF, **{key: EFFECT[key]}))
    assert any(not torch.equal(plain[(0, i)][0], changed[(0, i)][0]) for i in range(4))


def test_area_of_crops_is_bounded_below(tmp_path: Path) -> None:
    """A ramp from left to right: what a crop spans of it is its width."""
    cv2.imwrite(str(tmp_path / "ramp.png"), np.tile(np.arange(200, dtype=np.uint8), (200, 1)))
    spans = {}
    for area in (0.1, 0.9):
        drawn = samples([tmp_path / "ramp.png"], replace(OFF, crop="random_resized", min_area=area))
        spans[area] = min(int(np.ptp(drawn[(e, 0)][0].numpy())) for e in range(30))
    assert spans[0.1] < 120 < 150 < spans[0.9]


def test_nothing_drawn_is_the_squeezed_original(images: list[Path]) -> None:
    drawn, plain = samples(images, OFF), samples(images, STRONG, augment=False)
    for index, file in enumerate(images):
        picture = cv2.imread(str(file))
        shrinks = min(picture.shape[:2]) >= SIDE
        wanted = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        got = drawn[(3, index)][0].permute(1, 2, 0).numpy()[..., ::-1]
        reduced = file.suffix == ".jpg" and min(picture.shape[:2]) >= 2 * SIDE
        off = np.abs(got.astype(int) - wanted)
        assert off.mean() < 5 if reduced else off.max() == 0
    assert not torch.equal(plain[(0, 0)][0], drawn[(0, 0)][0])


def test_flips_and_channels_are_what_they_say(tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32] = (0, 0, 250)  # red in OpenCV's order
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    plain = samples([tmp_path / "a.png"], OFF)[(0, 0)][0]
    assert plain[0, 5, 5] == 250 and plain[2, 5, 5] == 0 and plain[0, 5, 28] == 0
    assert torch.equal(samples([tmp_path / "a.png"], replace(OFF, fliplr=1.0))[(0, 0)][0], plain.flip(2))
    assert torch.equal(samples([tmp_path / "a.png"], replace(OFF, flipud=1.0))[(0, 0)][0], plain.flip(1))


def test_validation_shows_the_centre_or_all_of_it(tmp_path: Path) -> None:
    """A frame of 1/16 of each side is cut away by the centre crop, and kept where images are squeezed."""
    picture = np.full((256, 256, 3), 255, np.uint8)
    picture[16:240, 16:240] = 0
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    centre = samples([tmp_path / "a.png"], augment=False, imgsz=224)[(0, 0)][0]
    assert centre.max() == 0
    assert samples([tmp_path / "a.png"], OFF, augment=False, imgsz=224)[(0, 0)][0][0, 2, 2] == 255
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255
    cv2.imwrite(str(tmp_path / "b.png"), wide)
    assert samples([tmp_path / "b.png"], augment=False)[(0, 0)][0].min() == 255


def test_validation_is_the_same_in_every_epoch_and_with_any_seed(images: list[Path]) -> None:
    first = samples(images, augment=False)
    second = samples(images, augment=False, seed=9)
    assert all(torch.equal(first[(0, i)][0], second[(7, i)][0]) for i in range(11))


# ---- decoding


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (80, 60)) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind", "suffix"),
    [
        ("RGB", "JPEG", "jpg"),
        ("L", "JPEG", "jpg"),
        ("CMYK", "JPEG", "jpg"),
        ("P", "PNG", "png"),
        ("RGBA", "PNG", "png"),
        ("1", "PNG", "png"),
        ("RGB", "WEBP", "webp"),
        ("RGBA", "TIFF", "tif"),
        ("L", "TIFF", "tif"),
        ("RGB", "AVIF", "avif"),
        ("RGB", "BMP", "bmp"),
    ],
)
def test_image_of_every_kind_becomes_colour_with_the_shape_that_was_checked(
    tmp_path: Path, mode: str, kind: str, suffix: str
) -> None:
    raw = encoded(picture(mode), kind)
    (tmp_path / f"a.{suffix}").write_bytes(raw)
    decoded = read_picture(tmp_path / f"a.{suffix}")
    assert decoded.shape == (60, 80, 3) and decoded.dtype == np.uint8
    assert decoded.shape[:2] == examine_image(raw, suffix)[0]
    wanted = np.asarray(picture(mode).convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(decoded - wanted).mean() < (25 if mode == "CMYK" else 4)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("least_side", [None, 20])
def test_rotation_of_the_camera_is_honoured(tmp_path: Path, turn: int, least_side: int | None) -> None:
    exif = Image.Exif()
    exif[274] = turn
    raw = encoded(picture(size=(160, 80)), "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(raw)
    height, width = examine_image(raw, "jpg")[0]
    factor = 1 if least_side is None else 4
    assert read_picture(tmp_path / "a.jpg", least_side).shape == (height // factor, width // factor, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(60, 80), (60, 80, 3)])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(cv2.imencode(f".{suffix}", np.full(shape, 40_000, np.uint16))[1].tobytes())
    assert np.abs(read_picture(tmp_path / f"a.{suffix}").astype(int) - 40_000 / 256).max() <= 1


def test_animation_gives_its_first_picture(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (60, 60), "red"), Image.new("RGB", (60, 60), "blue")
    red.save(tmp_path / "a.webp", save_all=True, append_images=[blue], lossless=True)
    assert read_picture(tmp_path / "a.webp")[30, 30].tolist() == [0, 0, 255]


def test_large_jpeg_is_decoded_smaller_but_not_below_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(picture(size=(1600, 1200)), "JPEG"))
    sides = [read_picture(tmp_path / "a.jpg", side).shape[0] for side in (100, 150, 151, 300, 600, 601)]
    assert sides == [150, 150, 300, 300, 600, 1200]


def test_image_that_is_gone_or_broken_since_it_was_checked_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Error loading image .*a\.jpg: No such file"):
        read_picture(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 nothing more")
    with pytest.raises(RunError, match=r"a\.jpg: it cannot be decoded"):
        read_picture(tmp_path / "a.jpg", 10)
    with pytest.raises(RunError, match=r"a\.jpg"):
        samples([tmp_path / "a.jpg"], cache="ram")


def test_targets_that_are_not_as_many_as_the_images_are_a_defect(images: list[Path]) -> None:
    with pytest.raises(ValueError, match="11 images, but 1 targets"):
        ImageSamples(images, [0], imgsz=8, augmentation=OFF, augment=False, seed=0)


# ---- workers


def test_worker_leaves_ctrl_c_to_the_main_process_and_obeys_sigterm(images: list[Path]) -> None:
    loader = make_loader(samples(images), batch_size=4, at_once=4, workers=1, seed=0, shuffle=True)
    try:
        batches = iter(loader)
        next(batches)
        (worker,) = loader._iterator._workers
        os.kill(worker.pid, signal.SIGINT)
        assert len([next(batches), next(batches)]) == 2
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(timeout=10)
        assert worker.exitcode == 0
    finally:
        loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_is_gone_is_one_line_whoever_missed_it(tmp_path: Path, workers: int) -> None:
    loader = make_loader(samples([tmp_path / "a.jpg"]), batch_size=1, at_once=1, workers=workers, seed=0, shuffle=False)
    with pytest.raises(RunError) as caught:
        next(iter(loader))
    loader.close()
    assert str(caught.value) == f"Error loading image {tmp_path / 'a.jpg'}: No such file or directory"


def test_closed_loader_leaves_no_process(images: list[Path]) -> None:
    loader = make_loader(samples(images), batch_size=4, at_once=4, workers=2, seed=0, shuffle=True)
    next(iter(loader))
    workers = list(loader._iterator._workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    loader.close()
