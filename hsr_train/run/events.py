"""TensorBoard event files, written without torch or tensorflow: tensorboard's protocol buffers in an ordinary file.

`tensorboard` serves them. The libraries are imported when a writer is made: composing a configuration stays fast.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from hsr_train.errors import RunError
from hsr_train.run.atomic import describe_disk_error, write_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)

_PATTERN = "events.out.tfevents.*"
_LOSSLESS_UP_TO_BYTES = 256 * 1024
_JPEG_QUALITY = 92


class EventWriter:
    """Writes one event file; every step is an epoch, so that a resumed run can purge by step.

    A disk that refuses ends the events with one warning and is kept as `failure` for whoever asks.

    Args:
        directory: Folder of the event files; created if missing. A resumed run adds a file of its own.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._directory = Path(directory)
        self._file: IO[bytes] | None = None
        self.failure: str | None = None
        self.path = self._directory
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self.path = self._directory / self._name()
            self._file = self.path.open("xb")
        except OSError as error:
            self._give_up(error)
        self._records: Any = RecordWriter(self._file)
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def purge_after(self, step: int) -> None:
        """Forget what earlier writers wrote for later steps than `step`, and the torn end that a kill left.

        For resume, before anything else is written: `step` is the last epoch whose state was saved.
        """
        from tensorboard.compat.proto import event_pb2

        if self._file is None:
            return
        try:
            drop_later_steps(self._directory, step, keep=self.path)
        except (OSError, RunError) as error:
            self._give_up(error)
        # For viewers that already hold the deleted points: forget every step from here on. Alone it would not do,
        # since TensorBoard's fast loader (2.21) ignores it for tags that get no new point.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start))
        self.flush()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one point of the curve `tag`; kept as float32."""
        self._value(step, tag=tag, simple_value=float(value))

    def image(self, tag: str, image_hwc_uint8_rgb: npt.NDArray[np.uint8], step: int) -> None:
        """Add a picture of shape (height, width, 3), RGB, 0 to 255.

        It is stored as PNG, or as JPEG where the PNG is larger than 256 KiB (photographs).

        Raises:
            ValueError: Another shape or type.
        """
        import cv2
        from tensorboard.compat.proto import summary_pb2

        if image_hwc_uint8_rgb.ndim != 3 or image_hwc_uint8_rgb.shape[2] != 3 or image_hwc_uint8_rgb.dtype != "uint8":
            shape, kind = image_hwc_uint8_rgb.shape, image_hwc_uint8_rgb.dtype
            raise ValueError(f"image {tag!r}: shape (height, width, 3) of uint8 expected, not {shape} of {kind}")
        height, width, _ = image_hwc_uint8_rgb.shape
        bgr = cv2.cvtColor(image_hwc_uint8_rgb, cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".png", bgr)[1]
        if encoded.nbytes > _LOSSLESS_UP_TO_BYTES:
            encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
        picture = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encoded.tobytes()
        )
        self._value(step, tag=tag, image=picture)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Add a text, shown as Markdown."""
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
            string_val=[markdown.encode("utf-8", "backslashreplace")],
        )
        self._value(step, tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=tensor)

    def metadata(self, tag: str, metadata: Any) -> None:
        """Add what a plugin keeps in a summary's metadata, without a value."""
        from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=0)])
        empty = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape)
        self._value(0, tag=tag, metadata=metadata, tensor=empty)

    def flush(self) -> None:
        """Hand everything to the system: a kill of this process loses nothing written before. Once an epoch."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Flush and close; further calls have no effect."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _name(self) -> str:
        """Return a name that sorts after every event file here: readers take them in that order."""
        start = int(time.time())
        for file in self._directory.glob(_PATTERN):
            with suppress(ValueError):
                start = max(start, int(file.name.split(".")[3]) + 1)
        return f"events.out.tfevents.{start:010d}.{socket.gethostname()}.{os.getpid()}.0"

    def _value(self, step: int, **fields: Any) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(**fields)])
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        if self._file is None:
            return
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError | RunError) -> None:
        self.failure = describe_disk_error(self.path, error) if isinstance(error, OSError) else str(error)
        log.warning("No more TensorBoard events in this run: %s", self.failure)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def has_tag(directory: Path, tag: str) -> bool:
    """Whether an event file of `directory` has a point, picture or text of that name.

    Raises:
        RunError: A file cannot be read.
    """
    from tensorboard.compat.proto import event_pb2

    try:
        records = [record for path in directory.glob(_PATTERN) for record in _records(path.read_bytes())]
    except OSError as error:
        raise RunError(f"cannot read {directory}: {error.strerror or error}") from error
    events = (event_pb2.Event.FromString(record[12:-4]) for record in records)
    return any(value.tag == tag for event in events for value in event.summary.value)


def drop_later_steps(directory: Path, step: int, keep: Path | None = None) -> int:
    """Rewrite the event files of `directory` without the events of later steps than `step`, and without torn ends.

    Args:
        directory: Folder of the event files.
        step: The last step that stays.
        keep: A file that stays as it is: somebody has it open.

    Returns:
        How many events were dropped.

    Raises:
        OSError: A file cannot be read.
        RunError: A file cannot be written; it is then as before.
    """
    from tensorboard.compat.proto import event_pb2

    dropped = 0
    for path in sorted(set(directory.glob(_PATTERN)) - {keep}):
        data = path.read_bytes()
        kept = []
        for record in _records(data):
            event = event_pb2.Event.FromString(record[12:-4])
            # A session's start carries the step from which an earlier resume forgot; that stays forgotten.
            if event.step <= step or event.HasField("session_log"):
                kept.append(record)
            else:
                dropped += 1
        whole = b"".join(kept)
        if whole != data:
            write_bytes(path, whole)
    return dropped


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the complete records: length (8 bytes), its checksum (4), an event, its checksum (4).

    Stops at the first one that is torn or whose length is no length; a power cut can leave zeros behind.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # type: ignore[import-untyped]

    start = 0
    while start + 12 <= len(data):
        length, checksum = struct.unpack_from("<QI", data, start)
        end = start + 12 + length + 4
        if end > len(data) or checksum != masked_crc32c(data[start : start + 8]):
            return
        yield data[start:end]
        start = end
