"""Images for the network as pure functions of (seed, epoch, index), and the loader that brings them in batches.

`augment.py` makes the view of one image, `batches.py` says which images make a batch. Batches are mixed (mixup, CutMix)
here, as a whole, before they are handed over in parts. `data/` has checked every file before.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from hsr_train.config.schema.classify import ClassifyAugmentationConfig
from hsr_train.data.images import quiet_decoder
from hsr_train.engines.classification.augment import Picture, View, drawing
from hsr_train.engines.classification.batches import EndlessBatches, Poisson, SampleKey, part_sizes
from hsr_train.engines.loader_start import heed_stops, stops_held
from hsr_train.engines.together import WHOLE, Share
from hsr_train.errors import RunError

_MIXING = 1  # sets the draws of a batch apart from those of a sample
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def read_picture(path: Path, least_side: int | None = None) -> Picture:
    """Decode an image file as `data.images` has checked it: EXIF rotation, first page, 8 bits, no alpha.

    Args:
        path: Of the file.
        least_side: A JPEG may be decoded at a half, a quarter or an eighth of its size, as long as its short side
            keeps this many pixels; None: at full size.

    Returns:
        (height, width, 3), BGR.

    Raises:
        RunError: If the file is gone or does not decode any more.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunError(f"Error loading image {path}: {error.strerror}") from error
    with quiet_decoder():
        try:
            picture = _decoded(raw, path.suffix.lower().removeprefix("."), least_side)
        # The last one: ultralytics, where it was imported before, makes Pillow ask for a plug-in.
        except (cv2.error, OSError, ValueError, SyntaxError, ModuleNotFoundError):
            picture = None
    if picture is None:
        raise RunError(f"Error loading image {path}: it cannot be decoded any more")
    return picture


def _decoded(raw: bytes, suffix: str, least_side: int | None) -> Picture | None:
    buffer = np.frombuffer(raw, np.uint8)
    if suffix in ("tif", "tiff"):
        # As in detection: colour TIFFs unrotated, grey ones like every other image.
        good, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED)
        if good and pages[0].ndim == 3 and pages[0].shape[2] >= 3 and pages[0].dtype in (np.uint8, np.uint16):
            return _eight_bit(pages[0][..., :3])
    if suffix in ("avif", "heic", "heif"):
        with Image.open(io.BytesIO(raw)) as opened, ImageOps.exif_transpose(opened) as turned:
            return np.asarray(turned.convert("RGB"))[..., ::-1]
    flag = cv2.IMREAD_COLOR
    if least_side is not None and raw.startswith(b"\xff\xd8"):
        with Image.open(io.BytesIO(raw)) as opened:  # reads the header alone
            flag = _REDUCED.get(_reduction(min(opened.size), least_side), flag)
    decoded = cv2.imdecode(buffer, flag)
    return None if decoded is None else _eight_bit(decoded)


def _reduction(side: int, least_side: int) -> int:
    return next((factor for factor in (8, 4, 2) if side // factor >= least_side), 1)


def _eight_bit(picture: Any) -> Picture:
    return np.asarray(picture >> 8 if picture.dtype == np.uint16 else picture, np.uint8)


@dataclass(frozen=True)
class Mixing:
    """Blending the images of a batch with one another.

    Attributes:
        num_classes: Columns of the soft targets.
        mixup: Beta parameter of mixup; 0 is off.
        cutmix: Beta parameter of CutMix; 0 is off. With both on, each batch draws one of them.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0


class ImageSamples(Dataset[tuple[Tensor, int, int]]):
    """The images of a split, as the network sees them.

    Args:
        images: Files.
        targets: Class numbers.
        imgsz: Side of the square in pixels.
        augmentation: What is drawn for training, and how an image becomes a square.
        augment: Whether anything is drawn.
        seed: Of the draws.
        cache: "ram" keeps every decoded image in memory (JPEGs reduced, see `read_picture`): decoded once, here, and
            shared by the workers, which are forked afterwards. A sample is the same with and without.
    """

    def __init__(
        self,
        images: Sequence[Path],
        targets: Sequence[int] | np.ndarray,
        *,
        imgsz: int,
        augmentation: ClassifyAugmentationConfig,
        augment: bool,
        seed: int,
        cache: str = "none",
    ) -> None:
        self.images, self.targets, self.seed = list(images), [int(t) for t in targets], seed
        self.imgsz = imgsz
        if len(self.images) != len(self.targets):
            raise ValueError(f"{len(self.images)} images, but {len(self.targets)} targets")
        self._view = View(augmentation, imgsz, augment=augment)
        self._kept: list[Picture] | None = None
        if cache == "ram":
            with quiet_decoder(), ThreadPoolExecutor() as threads:  # quiet here too: threads restore in any order
                self._kept = list(threads.map(self._read, range(len(self.images))))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int, int]:
        """Return an image as uint8 RGB (3, imgsz, imgsz), its class number, and its index."""
        epoch, index = key
        picture = self._read(index) if self._kept is None else self._kept[index]
        if not self._view.augment:
            return self._view(picture), self.targets[index], index
        with drawing(self.seed, epoch, index):
            return self._view(picture), self.targets[index], index

    def _read(self, index: int) -> Picture:
        return read_picture(self.images[index], self._view.least_side)


def cached_bytes(
    images: Sequence[Path], shapes: np.ndarray, imgsz: int, augmentation: ClassifyAugmentationConfig
) -> int:
    """Return what `ImageSamples` with cache=ram keeps in memory for training.

    Args:
        images: Files.
        shapes: (n, 2) height and width in pixels.
        imgsz: Side of the square in pixels.
        augmentation: Says how small an image may be decoded.
    """
    least = View(augmentation, imgsz, augment=True).least_side
    total = 0
    for image, (height, width) in zip(images, shapes.tolist(), strict=True):
        is_jpeg = image.suffix.lower() in (".jpg", ".jpeg")
        factor = _reduction(min(height, width), least) if is_jpeg and least is not None else 1
        total += 3 * -(-height // factor) * -(-width // factor)
    return total


def mix(
    images: Tensor, targets: Tensor, *, num_classes: int, mixup: float, cutmix: float, seed: int, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with its neighbour, by one share (and one rectangle) for the batch.

    Meant for whole batches: a part would pair other neighbours. `make_loader` calls it before it makes parts.

    Args:
        images: (n, 3, height, width); blends of uint8 are rounded.
        targets: (n,) class numbers.
        num_classes: Columns of the result's targets.
        mixup: Beta parameter of mixup; 0 is off.
        cutmix: Beta parameter of CutMix; 0 is off.
        seed: Of the run.
        epoch: Counted from 0.
        step: Any number that tells the batch from others of its epoch.

    Returns:
        Images of the same shape and type, and targets (n, num_classes) of float32, whose rows add up to 1.
    """
    with drawing(seed, epoch, step, _MIXING):
        takes_mixup = mixup > 0 and (cutmix == 0 or bool(torch.rand(()) < 0.5))
        if not takes_mixup and cutmix == 0:
            return images, torch.nn.functional.one_hot(targets, num_classes).float()
        if not takes_mixup:
            blended, soft = v2.CutMix(alpha=cutmix, num_classes=num_classes)(images, targets)
            return blended, soft
        blended, soft = v2.MixUp(alpha=mixup, num_classes=num_classes)(images.float(), targets)
    return (blended.round() if images.dtype == torch.uint8 else blended).to(images.dtype), soft


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 images with mean 0 and standard deviation 1 per channel, on the device where they are.

    Args:
        images: (n, 3, height, width), values from 0 to 255.
        mean: Per RGB channel, of values in [0, 1].
        std: Likewise.
    """
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    return images.float().sub_(shift).div_(scale)


class _Batches(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Whole batches by the keys of their samples, mixed where that is asked for."""

    def __init__(self, samples: ImageSamples, mixing: Mixing | None) -> None:
        self.samples, self.mixing = samples, mixing

    def __getitem__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor, Tensor]:
        if not keys:
            none = torch.empty(0, dtype=torch.int64)
            return torch.empty((0, 3, self.samples.imgsz, self.samples.imgsz), dtype=torch.uint8), none, none
        images, targets, indices = default_collate([self.samples[key] for key in keys])
        if self.mixing is not None:
            epoch, first = keys[0]
            how = self.mixing
            images, targets = mix(
                images,
                targets,
                num_classes=how.num_classes,
                mixup=how.mixup,
                cutmix=how.cutmix,
                seed=self.samples.seed,
                epoch=epoch,
                step=first,
            )
        return images, targets, indices


def _say_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report a worker's error, but not that the main process has left while a batch was on its way."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _start_worker(worker_id: int) -> None:
    """Leave Ctrl-C to the main process; obey SIGTERM, which schedulers send to all, without a sign of failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    heed_stops()
    sys.excepthook = _say_unless_left
    cv2.setNumThreads(0)  # the workers themselves are as many as there are cores


class EpochLoader:
    """Batches in parts; one `iter()`, followed to its end, is one epoch. Workers live, and load ahead, until `close`.

    Yields images (n, 3, imgsz, imgsz) of uint8, targets ((n,) class numbers, or (n, classes) soft ones where batches
    are mixed) and indices (n,); an index of -1 marks an image that fills a place and does not count. See `make_loader`.
    """

    def __init__(self, loader: Any, batches: EndlessBatches, at_once: int, least: int) -> None:
        self._loader, self._batches, self._at_once, self._least = loader, batches, at_once, least
        self._epoch = batches.next_epoch
        self._iterator: Any = None

    def __len__(self) -> int:
        """Return the number of parts in the next epoch."""
        return sum(map(len, self._parts()))

    @property
    def sizes(self) -> list[int]:
        """Sizes of the batches of the next epoch, the shares of all processes together."""
        return self._batches.sizes(self._epoch)

    @property
    def share_sizes(self) -> list[int]:
        """Sizes of this process's shares of them."""
        return [self._batches.share.size(size, self._least) for size in self.sizes]

    def _parts(self) -> list[list[int]]:
        return [part_sizes(size, self._at_once, self._least) for size in self.share_sizes]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        if self._iterator is None:
            with stops_held():
                self._iterator = iter(self._loader)
        epoch_parts, sizes = self._parts(), self.sizes
        self._epoch += 1
        for size, parts in zip(sizes, epoch_parts, strict=True):
            images, targets, indices = self._next()
            indices[self._batches.share.real(size) :] = -1
            yield from zip(*(tensor.split(parts) for tensor in (images, targets, indices)), strict=True)

    def _next(self) -> Any:
        """Return the next batch; an error of ours arrives from a worker as a traceback that ends with its text."""
        try:
            return next(self._iterator)
        except RunError as error:
            raise RunError(str(error).strip().rpartition("RunError: ")[2]) from error
        except RuntimeError as error:  # torch may say no more than that a worker has gone
            ended = {worker.exitcode for worker in getattr(self._iterator, "_workers", ())}
            if ended & {-signal.SIGKILL, -signal.SIGBUS}:
                raise MemoryError("A loader worker was killed by the kernel") from error
            raise

    def close(self) -> None:
        """Stop the workers."""
        if hasattr(self._iterator, "_shutdown_workers"):
            self._iterator._shutdown_workers()
        self._iterator = None


def make_loader(
    samples: ImageSamples,
    *,
    batch_size: int,
    at_once: int,
    workers: int,
    seed: int,
    shuffle: bool,
    start_epoch: int = 0,
    least: int = 1,
    pin: bool = False,
    mixing: Mixing | None = None,
    poisson: Poisson | None = None,
    share: Share = WHOLE,
) -> EpochLoader:
    """Return an endless loader; what it yields does not depend on the workers, and together not on `at_once`.

    Args:
        samples: Where images come from.
        batch_size: Images per batch.
        at_once: Images that are handed over together; a larger batch comes in nearly equal parts, none of which
            crosses the border of a batch, so that gradients add up over the same images.
        workers: Loader processes; 0 loads in this one.
        seed: Of the order.
        shuffle: Whether the order is drawn anew for each epoch.
        start_epoch: The first epoch, counted from 0.
        least: A last batch of fewer images is left out (others, after the next shuffling), and no part is smaller.
        pin: Whether batches are put where a GPU copies from fastest.
        mixing: How the images of a batch are blended; applied to whole batches.
        poisson: How batches are drawn instead of by `batch_size`, `shuffle` and `least`.
        share: What this process takes of each batch; `at_once` and `least` are of a share.
    """
    least = max(least, 1)
    batches = EndlessBatches(len(samples), batch_size, seed, start_epoch, shuffle, least, poisson, share)
    loader = DataLoader(
        _Batches(samples, mixing),
        batch_size=None,  # an item is a batch
        sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),
    )
    return EpochLoader(loader, batches, at_once, least)
