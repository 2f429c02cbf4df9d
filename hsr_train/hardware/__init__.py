"""The hardware room: what this machine is, and what that means for a run.

`detect()` gives a `Machine` without importing torch: GPUs in torch's numbering (`gpus`, `visible`), memory and cores
within the container's limits (`limits`), put together in `machine`. `choices` turns it into decisions with reasons;
`batch_search` finds the largest batch by measuring.
"""

from hsr_train.hardware.batch_search import Budget, FoundBatch, search_batch
from hsr_train.hardware.choices import (
    choose_batch,
    choose_cache,
    choose_tier,
    choose_workers,
    device_problems,
    parse_device,
    resolve_device,
)
from hsr_train.hardware.gpus import Gpu, nominal_gb, pin_cuda_order
from hsr_train.hardware.machine import Machine, detect, read_machine

__all__ = [
    "Budget",
    "FoundBatch",
    "Gpu",
    "Machine",
    "choose_batch",
    "choose_cache",
    "choose_tier",
    "choose_workers",
    "detect",
    "device_problems",
    "nominal_gb",
    "parse_device",
    "pin_cuda_order",
    "read_machine",
    "resolve_device",
    "search_batch",
]
