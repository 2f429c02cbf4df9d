"""mode=predict: weights over an image, a folder or a video, one picture at a time.

`predict_sources.py` lists what there is to do and names the results; ultralytics' predictor shapes the input, runs the
network and suppresses overlaps. Pictures are read as in training (EXIF rotation, 16 bit, formats beyond OpenCV).
Written: `annotated/` (the pictures with boxes), `labels/` (YOLO lines with the score at the end) and
`predictions.csv`; nothing lies beside the user's files.
"""

from __future__ import annotations

import csv
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hsr_train.config.schema import PredictConfig
from hsr_train.data.images import examine_image, quiet_decoder
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.predict_sources import Item, Sources, find_sources
from hsr_train.engines.detection.weights import load_model
from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.atomic import DISK_ERRORS, atomic_path, describe_disk_error

bring_up()
from ultralytics.models.yolo.detect import DetectionPredictor  # noqa: E402
from ultralytics.utils.patches import imread  # noqa: E402

log = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), BGR."""

_COLUMNS = ("file", "frame", "class_id", "class", "score", "x1", "y1", "x2", "y2")
_PREDICT_OPTIONS = ("nms", "agnostic_nms", "channels_last")
_FRAMES_PER_S = 25.0


@dataclass
class Prediction:
    """What was found, and in what.

    Attributes:
        output_dir: Where the results lie.
        images: Images that were read.
        videos: Videos that were read.
        frames: Their frames.
        boxes: Boxes in all of them.
        boxes_per_class: By class name; classes without a box are left out.
        unreadable: File and reason of what could not be read.
        skipped: Number of files in the folder that are neither image nor video, by ending.
        speed_ms: Milliseconds per picture: read, preprocess, inference, postprocess, write.
    """

    output_dir: Path
    images: int = 0
    videos: int = 0
    frames: int = 0
    boxes: int = 0
    boxes_per_class: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    speed_ms: dict[str, float] = field(default_factory=dict)


def predict(
    model: Path,
    source: Path,
    *,
    config: PredictConfig,
    imgsz: int,
    device: str,
    output_dir: Path,
    options: dict[str, Any] | None = None,
) -> Prediction:
    """Run weights over an image, a folder with its sub-folders, or a video.

    Args:
        model: A plain .pt checkpoint.
        source: The image, folder or video.
        config: Thresholds.
        imgsz: Longer side of the network input in pixels.
        device: A torch device, such as cpu or cuda:0.
        output_dir: Where the results go; created if need be.
        options: Further ultralytics options (`options.passed_through`); those that prediction knows are honoured.

    Raises:
        InputError: If the weights cannot be loaded, or there is no image or video, or none that can be read.
        RunError: The disk refused.
    """
    sources = find_sources(source, output_dir)
    predictor = make_predictor(model, config=config, imgsz=imgsz, device=device, output_dir=output_dir, options=options)
    try:
        prediction = _Run(predictor, sources, output_dir).execute()
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunError(describe_disk_error(output_dir, error)) from error
    _report(prediction, len(sources.items))
    if not prediction.images and not prediction.videos:
        raise InputError(
            Problem(
                "data.path",
                str(source),
                f"none of {len(sources.items)} files can be read: {prediction.unreadable[0]}",
                "give images or videos that open in a viewer",
            )
        )
    return prediction


def make_predictor(
    model: Path,
    *,
    config: PredictConfig,
    imgsz: int,
    device: str,
    output_dir: Path,
    options: dict[str, Any] | None = None,
    rect: bool = True,
) -> Any:
    """Return ultralytics' predictor, which has predicted once; arguments as of `predict`.

    Args:
        rect: Pad a picture to its own shape instead of to a square.
    """
    network = load_model(model)
    network.task = "detect"
    chosen = {key: value for key, value in (options or {}).items() if key in _PREDICT_OPTIONS}
    arguments = {
        **chosen,
        "task": "detect",
        "mode": "predict",
        "imgsz": imgsz,
        "conf": config.conf,
        "iou": config.iou,
        "max_det": config.max_det,
        "device": device.removeprefix("cuda:"),
        "rect": rect,
        "save": False,
        "save_dir": str(output_dir),
        "verbose": False,
    }
    predictor = DetectionPredictor(overrides=arguments)
    predictor.setup_model(network, verbose=False)
    predictor(np.zeros((imgsz, imgsz, 3), np.uint8))[0].plot()  # so that what is imported late counts for no picture
    return predictor


class _Run:
    """One pass over the sources: reads, predicts, writes and counts."""

    def __init__(self, predictor: Any, sources: Sources, output_dir: Path) -> None:
        self._predictor, self._sources, self._output_dir = predictor, sources, output_dir
        self._names: dict[int, str] = {int(i): str(name) for i, name in predictor.model.names.items()}
        self._prediction = Prediction(output_dir, unreadable=list(sources.unreadable), skipped=sources.skipped)
        self._per_class: Counter[int] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def execute(self) -> Prediction:
        """Work through all sources."""
        total = len(self._sources.items)
        with (
            atomic_path(self._output_dir / "predictions.csv") as table,
            table.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            tqdm(total=total, desc="predict", unit=" pictures", disable=None, leave=False) as bar,
        ):
            self._bar, self._csv = bar, csv.writer(file, lineterminator="\n")
            self._csv.writerow(_COLUMNS)
            for item in self._sources.items:
                (self._video if item.is_video else self._image)(item)
        result = self._prediction
        result.boxes = self._per_class.total()
        result.boxes_per_class = {self._names[i]: self._per_class[i] for i in sorted(self._per_class)}
        pictures = max(1, result.images + result.frames)
        result.speed_ms = {key: round(1000 * s / pictures, 3) for key, s in self._seconds.items()}
        return result

    def _image(self, item: Item) -> None:
        start = time.perf_counter()
        picture = read_picture(item.path)
        self._seconds["read"] += time.perf_counter() - start
        if isinstance(picture, str):
            self._give_up(item, picture)
        else:
            annotated = self._predict(picture, item, None, item.label)
            start = time.perf_counter()
            _write(self._output_dir / item.annotated, _encode(annotated, item.annotated))
            self._seconds["write"] += time.perf_counter() - start
            self._prediction.images += 1
        self._bar.update()

    def _video(self, item: Item) -> None:
        try:
            capture = cv2.VideoCapture(str(item.path))
        except UnicodeEncodeError:
            self._give_up(item, "its name is not UTF-8; rename it")
            return
        with quiet_decoder(), closing(_frames(capture)) as frames:
            first = next(frames, None)
            if first is None:
                self._give_up(item, "is no video that OpenCV can decode")
                return
            promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            self._bar.total = (self._bar.total or 0) + max(0, promised - 1)
            per_second = capture.get(cv2.CAP_PROP_FPS)
            if not (math.isfinite(per_second) and 0 < per_second <= 1000):
                log.warning("%s names no frame rate: the annotated video has %g frames/s", item.name, _FRAMES_PER_S)
                per_second = _FRAMES_PER_S
            before = self._prediction.frames
            target = self._output_dir / item.annotated
            with atomic_path(target) as temporary:
                self._annotate_video(item, first, frames, temporary, per_second)
        done = self._prediction.frames - before
        self._prediction.videos += 1
        if done < promised:
            log.warning("%s: %d of the %d frames that it should have could be read", item.name, done, promised)

    def _annotate_video(
        self, item: Item, first: Picture, frames: Iterator[Picture], target: Path, per_second: float
    ) -> None:
        height, width = first.shape[:2]
        writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), per_second, (width, height))
        frame: Picture | None = first
        number = 0
        try:
            if not writer.isOpened():
                raise RunError(
                    f"cannot write {item.annotated}: OpenCV has no encoder for a video of {width} x {height} pixels"
                )
            while frame is not None:
                number += 1
                annotated = self._predict(frame, item, number, f"{item.label}/{number:06d}.txt")
                start = time.perf_counter()
                writer.write(annotated)
                self._seconds["write"] += time.perf_counter() - start
                self._prediction.frames += 1
                self._bar.update()
                start = time.perf_counter()
                frame = next(frames, None)
                self._seconds["read"] += time.perf_counter() - start
        finally:
            writer.release()
        written = cv2.VideoCapture(str(target))
        complete = written.isOpened() and written.get(cv2.CAP_PROP_FRAME_COUNT) >= number
        written.release()
        if not complete:  # the writer reports no error when the disk is full
            raise RunError(f"cannot write {item.annotated}: the video is incomplete; is the disk full?")

    def _predict(self, picture: Picture, item: Item, frame: int | None, label: str) -> Picture:
        """Predict one picture, write its label file and table rows, and return it with boxes drawn."""
        result = self._predictor(picture)[0]
        for key, milliseconds in result.speed.items():
            self._seconds[key] += milliseconds / 1000
        start = time.perf_counter()
        boxes = result.boxes.cpu()
        lines = []
        for class_id, score, corners, fractions in zip(
            boxes.cls.int().tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), boxes.xywhn.tolist(), strict=True
        ):
            self._per_class[class_id] += 1
            lines.append(f"{class_id} {' '.join(f'{v:.6f}' for v in (*fractions, score))}\n")
            row = [item.name, "" if frame is None else frame, class_id, self._names[class_id], f"{score:.6f}"]
            self._csv.writerow(row + [f"{v:.2f}" for v in corners])
        _write(self._output_dir / label, "".join(lines).encode())
        annotated: Picture = result.plot()
        self._seconds["write"] += time.perf_counter() - start
        return annotated

    def _give_up(self, item: Item, why: str) -> None:
        log.warning("Left out: %s: %s", item.name, why)
        self._prediction.unreadable.append(f"{item.name}: {why}")


def read_picture(path: Path) -> Picture | str:
    """Return an image as training reads it, or why there is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    with quiet_decoder():
        try:
            picture: Picture | None = imread(str(path))
        except cv2.error:
            picture = None
        if picture is None or (raw.startswith(b"\xff\xd8") and not raw.endswith(b"\xff\xd9")):
            # Older OpenCV shows the missing part of a cut-off JPEG in grey, without a word.
            _, why = examine_image(raw, path.suffix.lower().removeprefix("."))
            if picture is None or "cut off" in why:
                return why or "cannot be decoded"
    return picture


def _frames(capture: cv2.VideoCapture) -> Generator[Picture, None, None]:
    try:
        while True:
            good, frame = capture.read()
            if not good:
                return
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()


def _encode(picture: Picture, name: str) -> bytes:
    try:
        good, data = cv2.imencode(Path(name).suffix, picture)
    except cv2.error:
        good = False
    if not good:
        height, width = picture.shape[:2]
        raise RunError(f"cannot write {name}: its format does not hold {width} x {height} pixels")
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk: there are thousands, and they can be remade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / ".part"
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _report(prediction: Prediction, num_files: int) -> None:
    done = [f"{prediction.images} images"] if prediction.images or not prediction.videos else []
    done += [f"{prediction.frames} frames of {prediction.videos} videos"] if prediction.videos else []
    per_class = ", ".join(f"{name} {count}" for name, count in prediction.boxes_per_class.items())
    log.info("Predicted %s: %d boxes%s", " and ".join(done), prediction.boxes, f" ({per_class})" if per_class else "")
    if prediction.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in prediction.skipped.items())
        log.info("Neither image nor video, left out: %s", kinds)
    if prediction.unreadable:
        log.warning("%d of %d files could not be read", len(prediction.unreadable), num_files)
    log.info("Milliseconds per picture: %s", ", ".join(f"{k} {v:.1f}" for k, v in prediction.speed_ms.items()))
    log.info("Results: %s", prediction.output_dir)
