"""How long a trained network takes for one image (`train.measure_latency`); what a pass is, each engine says itself.

The clock runs over what deployment repeats for each image; reading, resizing and the way to the device are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch

from hsr_train.engines.states import random_state, restore_random_state

IMAGES = 8
"""So many validation images take turns: what a network finds in them costs time, too."""
WARM_UP = 5
MOST, LEAST, LIMIT_S = 50, 5, 2.0
"""Passes that are timed: the most, and the fewest where the others do not fit into this time."""
ALL_S = 2 * LIMIT_S
"""A guess for a run that must be done in time: loading, warming up and measuring."""

Pass = Callable[[], Any]


def median_latency_ms(prepare: Callable[[], Sequence[Pass]], device: str) -> float:
    """Return the median time of a pass in milliseconds, as if the process did nothing else.

    Generators and the choice of kernels are afterwards what they were before.

    Args:
        prepare: Loads the network and returns a pass for each of some images, which take turns.
        device: Where it runs, such as cpu or cuda:0; a GPU is waited for before and after each pass.
    """
    with _undisturbed(), torch.inference_mode():
        passes = prepare()
        for one in islice(cycle(passes), WARM_UP):
            one()
        times: list[float] = []
        began = time.perf_counter()
        for one in islice(cycle(passes), MOST):
            if len(times) >= LEAST and time.perf_counter() - began >= LIMIT_S:
                break
            _wait_for(device)
            start = time.perf_counter()
            one()
            _wait_for(device)
            times.append(time.perf_counter() - start)
    return round(1000 * median(times), 4)


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let kernels be chosen as for prediction, which need not repeat a training; then put everything back."""
    cudnn = torch.backends.cudnn
    kept = random_state()
    algorithms = torch.get_deterministic_debug_mode()
    kernels = cudnn.deterministic, cudnn.benchmark
    torch.set_deterministic_debug_mode("default")
    cudnn.deterministic = cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = kernels
        torch.set_deterministic_debug_mode(algorithms)
        restore_random_state(kept)
