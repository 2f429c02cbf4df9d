"""A trained classifier from its weights file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hsr_train.engines.classification import weights
from hsr_train.engines.classification.models import build
from hsr_train.engines.classification.privacy import replace
from hsr_train.errors import InputError, Problem


def load_network(file: Path, device: str) -> nn.Module:
    """Return the network of a weights file of ours on a device, in evaluation mode.

    Raises:
        InputError: The file does not say which network and classes it is of, or does not fit it.
    """
    checkpoint = weights.read(file)
    if checkpoint.model_name is None or checkpoint.classes is None:
        allowed = "does not say which network and which classes it is of"
        raise InputError(Problem("model.weights", str(file), allowed, "use weights/best.pt of a run of task=classify"))
    model = build(checkpoint.model_name, len(checkpoint.classes))
    replace(model, checkpoint.more.get("replaced", []))
    model.load_state_dict(checkpoint.state)
    return model.to(device).eval()
