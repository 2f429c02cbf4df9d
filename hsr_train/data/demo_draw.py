"""The files of the built-in demo set, and the drawing of a share of them; also run as a process of its own.

Every picture is a pure function of (generator version, seed, kind, index), so the share that draws it does not matter.
`demo` divides the work and puts the finished folder in its place; `demo_scene` draws the single pictures.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.data.demo_objects import CLASSES
from hsr_train.data.demo_scene import Photograph, background, cutout, scene

VERSION = 2  # part of every picture's seed
JPEG_QUALITY = 90
_STREAMS = {"train": 0, "val": 1, "cutout": 2, "background": 3}


@dataclass(frozen=True)
class Plan:
    """What a demo set consists of.

    Attributes:
        seed: Of every picture.
        num_train: Training images.
        num_val: Validation images.
        num_cutouts: Annotated cut-outs per class.
        num_backgrounds: Empty scenes.
    """

    seed: int
    num_train: int
    num_val: int
    num_cutouts: int
    num_backgrounds: int

    @property
    def name(self) -> str:
        """The folder's name: whatever changes the content is in it, the generator's own code too."""
        return f"demo-{_code_digest()}-seed{self.seed}-" + "-".join(str(n) for n in astuple(self)[1:])

    def pictures(self) -> list[tuple[str, int]]:
        """Return (kind, index) of every picture; the index of a cut-out counts through the classes."""
        counts = {
            "train": self.num_train,
            "val": self.num_val,
            "cutout": self.num_cutouts * len(CLASSES),
            "background": self.num_backgrounds,
        }
        return [(kind, i) for kind, n in counts.items() for i in range(n)]


@cache
def _code_digest() -> str:
    """Eight characters that change with the generator's code, so that an older set is never mistaken for this one."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("demo*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def generator(seed: int, kind: str, index: int) -> np.random.Generator:
    """Return the source of all randomness of one picture."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([VERSION, seed, _STREAMS[kind], index])))


def label_lines(photograph: Photograph) -> str:
    """Return the YOLO label file of a photograph: class, centre and size as shares of the picture."""
    height, width = photograph.image.shape[:2]
    lines = []
    for seen in photograph.objects:
        left, top, right, bottom = seen.box
        x, y = (left + right) / 2 / width, (top + bottom) / 2 / height
        lines.append(f"{seen.label} {x:.6f} {y:.6f} {(right - left) / width:.6f} {(bottom - top) / height:.6f}\n")
    return "".join(lines)


def draw(folder: Path, seed: int, kind: str, index: int) -> None:
    """Draw one picture and write it with what belongs to it below `folder`, whose sub-folders exist."""
    rng = generator(seed, kind, index)
    if kind == "cutout":
        label = index % len(CLASSES)
        home, stem = folder / "annotated" / CLASSES[label], f"{CLASSES[label]}_{index // len(CLASSES):03d}"
        image, mask = cutout(rng, label)
        _write(home / "images" / f"{stem}.jpg", image)
        _write(home / "masks" / f"{stem}_mask.png", mask.astype(np.uint8) * np.uint8(255))
    elif kind == "background":
        _write(folder / "backgrounds" / f"background_{index:03d}.jpg", background(rng))
    else:
        photograph = scene(rng)
        _write(folder / "images" / kind / f"demo_{index:05d}.jpg", photograph.image)
        (folder / "labels" / kind / f"demo_{index:05d}.txt").write_text(label_lines(photograph), encoding="ascii")


def draw_share(folder: Path, plan: Plan, share: int, num_shares: int) -> None:
    """Draw every `num_shares`-th picture of a plan, starting with number `share`."""
    parent = os.getppid()
    for kind, index in plan.pictures()[share::num_shares]:
        if os.getppid() != parent:  # the process that asked for this is gone
            return
        draw(folder, plan.seed, kind, index)


def folders(plan: Plan) -> list[Path]:
    """Return the sub-folders of a set, relative to it."""
    names = [Path(a) / b for a in ("images", "labels") for b in ("train", "val")]
    if plan.num_cutouts:
        names += [Path("annotated") / c / part for c in CLASSES for part in ("images", "masks")]
    return [*names, Path("backgrounds")] if plan.num_backgrounds else names


def _write(path: Path, image: npt.NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV could not encode {path.name}")
    path.write_bytes(data.tobytes())  # not cv2.imwrite, which cannot say why it failed


if __name__ == "__main__":
    cv2.setNumThreads(1)  # the cores are shared out by the process that started this one
    _numbers = [int(text) for text in sys.argv[2:]]
    draw_share(Path(sys.argv[1]), Plan(*_numbers[:5]), *_numbers[5:])
