"""Plain ultralytics checkpoints: `weights/*.pt`, which YOLO("best.pt") loads where hsr_train is not installed.

They hold the EMA in float16 and no class of ours. What resuming needs, in full precision, is `state.py`'s matter.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any

import torch

from hsr_train.engines.detection.library import bring_up
from hsr_train.run.atomic import write_bytes
from hsr_train.run.directory import RunDirectory

bring_up()
from ultralytics import __version__ as ultralytics_version  # noqa: E402
from ultralytics.utils import DEFAULT_CFG_KEYS  # noqa: E402


class WeightsFile:
    """The form of a run's weights files: the network once, filled with other numbers for each file.

    Args:
        trainer: Set up; its EMA is copied to the CPU here, before training needs the memory.
        imgsz: The image size in pixels that fitness is measured at, which the file recommends to its users.
    """

    def __init__(self, trainer: Any, imgsz: int) -> None:
        trainer.ema.update_attr(trainer.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        self._model = deepcopy(trainer.ema.ema).cpu().half().to(memory_format=torch.contiguous_format)
        self._arguments = {k: v for k, v in vars(trainer.args).items() if k in DEFAULT_CFG_KEYS} | {"imgsz": imgsz}
        self._model.criterion, self._model.args, self._model.task = None, self._arguments, "detect"
        self._model.pt_path = None  # of no use where the file ends up
        for parameter in self._model.parameters():
            parameter.requires_grad = False

    def structure(self) -> torch.Tensor:
        """Return a checkpoint of the network without its numbers, as a vector of bytes.

        A YAML does not tell it: fine-tuning keeps the width of a pretrained head, whatever the number of classes.
        """
        hollow = deepcopy(self._model)
        hollow.args = {}  # they name the run's directory
        for tensor in (*hollow.parameters(), *hollow.buffers()):
            tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)  # one number is stored
        buffer = io.BytesIO()
        torch.save({"model": hollow}, buffer)
        return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)

    def serialize(self, ema: Mapping[str, torch.Tensor], metrics: Mapping[str, float]) -> bytes:
        """Return a checkpoint.

        Args:
            ema: The EMA's numbers, on the CPU in float32.
            metrics: Validation metrics of this epoch, stored as train_metrics.
        """
        largest = torch.finfo(torch.float16).max  # the variance of a batch norm can be beyond it
        self._model.load_state_dict(
            {k: v.clamp(-largest, largest) if v.is_floating_point() else v for k, v in ema.items()}
        )
        buffer = io.BytesIO()
        torch.save(
            {
                "epoch": -1,
                "model": self._model,
                "ema": None,
                "optimizer": None,
                "train_args": self._arguments,
                "train_metrics": dict(metrics),
                "date": datetime.now().astimezone().isoformat(),
                "version": ultralytics_version,
                "license": "AGPL-3.0 (https://ultralytics.com/license)",
                "docs": "https://docs.ultralytics.com",
            },
            buffer,
        )
        return buffer.getvalue()


def write_weights(form: WeightsFile, run: RunDirectory, state: dict[str, Any], save_period: int) -> None:
    """Write last.pt of a state, and best.pt and epoch<N>.pt if they are due.

    Also done on resume, since a run may have been killed between its state and its weights files.
    """
    number = state["epochs_done"]
    targets = [run.weights / "last.pt"]
    if state["best_epoch"] == number:
        targets.append(run.weights / "best.pt")
    if save_period and number % save_period == 0:
        targets.append(run.weights / f"epoch{number}.pt")
    serialized = form.serialize(state["ema"], state["metrics"])
    for path in targets:
        write_bytes(path, serialized)
