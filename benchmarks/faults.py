"""Faults for `oom.py` and `resume.py`: one call of one library function fails, or takes its process group along.

`side_by_side.py` puts a folder with a sitecustomize.py that calls `install` in front of PYTHONPATH, and the fault into
the environment: it reaches every Python process of a command, loader workers and children included, and patches
libraries only, so that it is the same for whoever calls them. A command meets its fault once.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "BENCHMARK_FAULT"
GPU_MEMORY, HOST_MEMORY, KILL = "torch.cuda.OutOfMemoryError", "MemoryError", "SIGKILL"
ALWAYS, TRAINING, IN_WORKER = "always", "the module is in training mode", "in a loader worker"


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where.

    Attributes:
        module: The module that defines the function, imported by its full name.
        function: The function in it; `Class.method` or a plain name.
        call: The call, counted from 1 in each process, that goes wrong.
        kind: GPU_MEMORY, HOST_MEMORY or KILL.
        counts: Which calls count: ALWAYS, TRAINING or IN_WORKER.
        marker: A file that is created when it happens; while it is there, the fault is over.
    """

    module: str
    function: str
    call: int
    kind: str
    counts: str = ALWAYS
    marker: str = ""

    def to_json(self) -> str:
        """Return the content of the environment variable."""
        return json.dumps(asdict(self))


def install() -> None:
    """Patch the function that the environment names as soon as its module is imported."""
    text = os.environ.get(VARIABLE)
    if text:
        sys.meta_path.insert(0, _AfterImport(Fault(**json.loads(text))))


class _AfterImport(MetaPathFinder):
    """Finds one module as everybody else does, and patches it once it is executed."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.fault.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module, self.fault)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch(module: ModuleType, fault: Fault) -> None:
    *owners, name = fault.function.split(".")
    owner: Any = functools.reduce(getattr, owners, module)
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if _counts(fault, args):
            calls += 1
            if calls == fault.call and _first(Path(fault.marker)):
                _happen(fault.kind)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def _counts(fault: Fault, args: tuple[Any, ...]) -> bool:
    if fault.counts == TRAINING:
        return bool(args[0].training)
    if fault.counts == IN_WORKER:
        import torch.utils.data

        return torch.utils.data.get_worker_info() is not None
    return True


def _first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _happen(kind: str) -> None:
    if kind == KILL:
        os.killpg(0, signal.SIGKILL)
    if kind == HOST_MEMORY:
        raise MemoryError("(injected)")
    import torch

    raise torch.cuda.OutOfMemoryError("CUDA out of memory. (injected)")
