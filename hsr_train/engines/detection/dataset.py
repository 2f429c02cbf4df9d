"""Images and labels for ultralytics, as pure functions of (seed, epoch, index).

`RunDataset` takes what `data/` has checked instead of scanning folders, so nothing is written beside the user's
files; `batches` tells each sample its epoch, since loader workers prefetch the next epoch before this one ends.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hsr_train.data.detection_set import DetectionSplit
from hsr_train.engines.detection.batches import EpochSampler, SampleKey, SplitBatches, epoch_order
from hsr_train.engines.detection.composition import SOURCE, classes_of
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.loader_start import heed_stops, stops_held
from hsr_train.engines.together import WHOLE, Share
from hsr_train.run.atomic import atomic_path
from hsr_train.synthesis import Composed, Composer, TrainingBackgrounds

bring_up()
import ultralytics.data.base as base_module  # noqa: E402
from ultralytics.data.augment import Albumentations, Compose, Mosaic  # noqa: E402
from ultralytics.data.build import InfiniteDataLoader, _RepeatSampler  # noqa: E402
from ultralytics.data.dataset import YOLODataset  # noqa: E402
from ultralytics.utils.patches import imread  # noqa: E402


def _bar(*args: Any, **kwargs: Any) -> Any:
    """Show the library's progress on a terminal's standard error, and nowhere else."""
    return tqdm(*args, **kwargs | {"file": sys.stderr, "leave": False, "disable": None})


base_module.TQDM = _bar

_MIXING = ("mosaic", "mixup", "cutmix", "copy_paste")
MOSAIC_WINDOW = 64
"""Mosaic partners are at most half of this many places away in the epoch's order, so that each was decoded, or will be
needed, nearby: one decoding per sample instead of four. The order is drawn anew for each epoch."""


def seed_sample(seed: int, epoch: int, index: int) -> None:
    """Seed the generators that augmentation draws from; costs about 20 microseconds."""
    words = np.random.SeedSequence((seed, epoch, index)).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))


PREFETCHED = 4
"""Batches that each loader worker makes ahead."""


class RunDataset(YOLODataset):  # type: ignore[misc]
    """An ultralytics dataset over a checked split.

    Args:
        split: Images, shapes and labels, checked.
        hyp: Ultralytics arguments (augmentation probabilities, cache, single_cls).
        augment: Training transforms instead of plain letterboxing.
        open_epochs: Epochs, counted from 0, in which images are mixed (mosaic and the like); later ones are plain.
        cache_dir: Folder for decoded images when hyp.cache is "disk".
        batch_size: Images per batch; shapes of rectangular batches depend on it.
        stride: Largest stride of the model in pixels.
        names: Class names by id.
        composer: Composes images, which come after the real ones: index n is the first after n real ones.
        num_composed: Tells how many composed images an epoch (from 0) has: the first one has the most.
        rect: Pad to each batch's own shape instead of to a square; default: only without augmentation.
    """

    def __init__(
        self,
        split: DetectionSplit,
        hyp: Any,
        *,
        augment: bool,
        open_epochs: int,
        cache_dir: Path,
        batch_size: int,
        stride: int,
        names: list[str],
        rect: bool | None = None,
        composer: Composer | None = None,
        num_composed: Callable[[int], int] | None = None,
    ) -> None:
        self._split = split
        self.composer, self.num_composed = composer, num_composed if composer is not None else None
        self._composed: OrderedDict[SampleKey, Composed] = OrderedDict()
        self._epoch = 0
        self._source: tuple[bool, np.ndarray] | None = None
        self._seed = int(hyp.seed)
        # Shared, so that the loader's workers see it change.
        self._open_epochs = torch.tensor(open_epochs)
        self._open_epochs.share_memory_()  # type: ignore[no-untyped-call]
        self._cached_files = [cache_dir / "images" / f"{h}.npy" for h in split.hashes]
        self._ordered_epoch = -1
        data = {"names": dict(enumerate(names)), "nc": len(names), "channels": 3}
        hyp = copy(hyp)
        hyp.deterministic = False  # silences its warning about cache=ram; the cause is gone, see build_transforms
        super().__init__(
            img_path=[str(p) for p in split.images],
            imgsz=hyp.imgsz,
            cache=hyp.cache or None,
            augment=augment,
            hyp=hyp,
            prefix=f"{split.name}: ",
            rect=not augment if rect is None else rect,
            batch_size=batch_size,
            stride=stride,
            pad=0.0 if augment else 0.5,
            single_cls=bool(hyp.single_cls),
            data=data,
            task="detect",
        )
        self.npy_files = self._in_order(self._cached_files)
        self._share_memory(len(self))
        if composer is not None and isinstance(composer.backgrounds, TrainingBackgrounds):
            composer.backgrounds.load = self._decoded
        if augment:
            plain = copy(hyp)
            for name in _MIXING:
                setattr(plain, name, 0.0)
            self._mixing: Any = self.transforms
            self._plain = self.build_transforms(plain)

    @property
    def open_epochs(self) -> int:
        """Epochs, counted from 0, in which images are mixed."""
        return int(self._open_epochs)

    @open_epochs.setter
    def open_epochs(self, value: int) -> None:
        self._open_epochs.fill_(value)

    def _in_order(self, files: list[Path]) -> list[Path]:
        """Reorder per-image files as rectangular batching has reordered the images."""
        by_image = dict(zip((str(p) for p in self._split.images), files, strict=True))
        return [by_image[f] for f in self.im_files]

    def get_img_files(self, img_path: list[str]) -> list[str]:
        """Return the checked images, in the split's order."""
        return list(img_path)

    def get_labels(self) -> list[dict[str, Any]]:
        """Return the checked labels in ultralytics' form."""
        split = self._split
        return [
            {
                "im_file": str(image),
                "shape": (int(shape[0]), int(shape[1])),
                "cls": label[:, :1].astype(np.float32),
                "bboxes": label[:, 1:].astype(np.float32),
                "segments": list(segments),
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for image, shape, label, segments in zip(
                split.images, split.shapes, split.labels, split.segments, strict=True
            )
        ]

    def check_cache_ram(self, safety_margin: float = 1.0) -> bool:
        """Trust the decision made by `hardware.choose_cache`."""
        return True

    def check_cache_disk(self, safety_margin: float = 0.1) -> bool:
        """Trust the decision made by `hardware.choose_cache`."""
        return True

    def cache_images(self) -> None:
        """Fill the cache; decoded files go to our own folder, keyed by content."""
        self.npy_files = self._in_order(self._cached_files)
        if self.cache == "disk":
            self._cached_files[0].parent.mkdir(parents=True, exist_ok=True)
        super().cache_images()

    def cache_images_to_disk(self, i: int) -> None:
        """Decode one image into the cache folder, whole or not at all."""
        if not self.npy_files[i].exists():
            with atomic_path(self.npy_files[i]) as temporary, temporary.open("wb") as file:
                np.save(file, imread(self.im_files[i], flags=self.cv2_flag), allow_pickle=False)

    def build_transforms(self, hyp: Any) -> Any:
        """Build the pipeline without what is there by accident.

        Mosaic takes partners from the epoch's order instead of from a buffer that depends on the worker's history,
        and the transforms that apply only because albumentations is installed are left out.
        """
        transforms = super().build_transforms(hyp)
        for transform in _walk(transforms):
            if isinstance(transform, Mosaic):
                transform.get_indexes = partial(self._draw_partners, transform.n - 1)
            if isinstance(transform, Compose):
                transform.transforms = [t for t in transform.transforms if not isinstance(t, Albumentations)]
        return transforms

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, index = key
        self._epoch = epoch
        if self.augment:
            seed_sample(self._seed, epoch, index)
            self.transforms: Any = self._mixing if epoch < int(self._open_epochs) else self._plain
            self._look_around(epoch, index)
        self._source = None
        sample: dict[str, Any] = super().__getitem__(index)
        if self.composer is not None:
            sample[SOURCE] = self._source
        return sample

    def __len__(self) -> int:
        return self.num_samples(0)

    def num_samples(self, epoch: int) -> int:
        """Return the number of images in an epoch, counted from 0."""
        return int(self.ni) + (self.num_composed(epoch) if self.num_composed is not None else 0)

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return a real image, or the composed one of this epoch, with its labels."""
        label = self._real(index) if index < self.ni else self._made(index)
        if self._source is None:  # the sample's own image is asked for first, then those that it is mixed with
            self._source = index >= self.ni, classes_of(label["cls"])
        return label

    def _real(self, index: int) -> dict[str, Any]:
        label: dict[str, Any] = super().get_image_and_label(index)
        return label

    def _made(self, index: int) -> dict[str, Any]:
        image, boxes, classes, outlines = self._compose(index - self.ni)
        size = np.array([image.shape[1], image.shape[0]], np.float32)
        sides = (boxes[:, 2:] - boxes[:, :2]) / size
        ids = np.zeros_like(classes) if self.single_cls else classes
        label = {
            "im_file": f"composed_{index - self.ni}.jpg",
            "cls": ids[:, None].astype(np.float32),
            "bboxes": np.hstack([boxes[:, :2] / size + sides / 2, sides]).astype(np.float32),
            "segments": [points / size for points in outlines],
            "keypoints": None,
            "normalized": True,
            "bbox_format": "xywh",
            "img": image,
            "ori_shape": image.shape[:2],
            "resized_shape": image.shape[:2],
            "ratio_pad": (1.0, 1.0),
        }
        made: dict[str, Any] = self.update_labels_info(label)
        return made

    def _compose(self, number: int) -> Composed:
        """Compose an image, or return it from those that were composed last: mosaic asks for its neighbours again."""
        assert self.composer is not None
        key = (self._epoch, number)
        found = self._composed.pop(key, None) or self.composer.compose(*key)
        self._composed[key] = found
        while len(self._composed) > max(self._most_composed, 1):
            self._composed.popitem(last=False)
        return found

    def _decoded(self, number: int, side: int) -> np.ndarray:
        """Return a real image for the composer, from the cache if it is there."""
        return np.asarray(self.load_image(number)[0], np.uint8)

    def _look_around(self, epoch: int, index: int) -> None:
        """Find the indices from which mosaic draws the partners of a sample: its neighbours in the epoch's order."""
        if epoch != self._ordered_epoch:
            self._order = epoch_order(self._seed, epoch, self.num_samples(epoch))
            self._place = np.argsort(self._order)
            self._ordered_epoch = epoch
            self._share_memory(len(self._order))
        first = min(max(int(self._place[index]) - MOSAIC_WINDOW // 2, 0), max(len(self._order) - MOSAIC_WINDOW, 0))
        self._neighbours = self._order[first : first + MOSAIC_WINDOW].tolist()

    def _share_memory(self, num_samples: int) -> None:
        """Let real and composed images share what is kept of an epoch, as far as they are not cached in RAM."""
        kept = min(num_samples, 2 * MOSAIC_WINDOW)
        self.max_buffer_length = kept * self.ni // num_samples if self.augment else 0
        self._most_composed = kept - self.max_buffer_length

    def _draw_partners(self, count: int) -> list[int]:
        return random.choices(self._neighbours, k=count)


def _walk(transform: Any) -> Iterator[Any]:
    yield transform
    for child in getattr(transform, "transforms", []):
        yield from _walk(child)
    if getattr(transform, "pre_transform", None) is not None:
        yield from _walk(transform.pre_transform)


def _say_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report a worker's error, but not that the main process has left while a batch was on its way."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _start_worker(worker_id: int) -> None:
    """Leave Ctrl-C to the main process, which shuts its workers down; obey SIGTERM without a sign of failure.

    Schedulers send SIGTERM to every process of a run. A worker that is killed by it makes torch raise in the main
    process, at about the moment at which that is told to stop itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    heed_stops()
    sys.excepthook = _say_unless_left


class _Loader(InfiniteDataLoader):  # type: ignore[misc]
    def _get_iterator(self) -> Any:
        with stops_held():
            return super()._get_iterator()

    def renew(self, epoch: int) -> None:
        """Go on with an epoch, counted from 0, as the data set is now: nothing that was made ahead stays."""
        self.reset()
        self.sampler.epoch = self.sampler.next_epoch = epoch


def make_loader(
    dataset: RunDataset,
    *,
    batch_size: int,
    at_once: int,
    workers: int,
    seed: int,
    shuffle: bool,
    start_epoch: int,
    pin: bool,
    share: Share = WHOLE,
) -> Any:
    """Return an endless loader whose workers live as long as it does; one `iter()` is one epoch.

    Where epochs differ in their number of images, `loader.sampler.epoch` is to be set before each.

    Args:
        dataset: Where samples come from.
        batch_size: Images per batch.
        at_once: Images that are handed over together; a batch that is larger comes in parts.
        workers: Loader processes.
        seed: Of the order.
        shuffle: Whether the order is drawn anew for each epoch.
        start_epoch: The first epoch, counted from 0.
        pin: Whether batches are put where a GPU copies from fastest.
        share: What this process takes of each batch, of several that train together.
    """
    sampler = EpochSampler(dataset.num_samples, seed, start_epoch, shuffle)
    loader = _Loader(
        dataset=dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=PREFETCHED if workers else None,
        collate_fn=RunDataset.collate_fn,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),
    )
    # Put in afterwards, as the library puts in its own: its trainer asks the loader for batch_size and sampler.
    object.__setattr__(loader, "batch_sampler", _RepeatSampler(SplitBatches(sampler, batch_size, at_once, share)))
    return loader
