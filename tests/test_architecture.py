"""Rules of the house that no type checker knows: who may import whom, and what a file looks like.

`docs/architecture.md` says them in words.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hsr_train
from hsr_train.engines.registry import ENGINES

PACKAGE = Path(hsr_train.__file__).parent
MODULES = {
    ".".join(("hsr_train", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_LINES = 400

COMMON = {"errors", "passwords", "decisions", "processes", "pace", "length", "ending"}
# Each room and what it may import of the package besides itself; an engine is a room of its own.
MAY_IMPORT = {
    "": {"config", "cross_validation"},
    "__main__": {"cli"},
    "cli": {
        "",
        "config",
        "cross_validation",
        "run",
        "engines.base",
        "hardware",
        "launcher",
        "supervisor",
        "sweep",
        *COMMON,
    },
    "launcher": {"hardware", "supervised_child", *COMMON},
    "sweep": {"config", "run", "hardware", *COMMON},
    "cross_validation": {
        "config",
        "execution",
        "engines.base",
        "engines.registry",
        "hardware",
        "run",
        "verification",
        *COMMON,
    },
    "supervisor": {"supervised_child", "config.schema", "hardware", "recovery", "run", *COMMON},
    "supervised_child": COMMON,
    "bookkeeping": {"config", "hardware", "recovery", "run", "engines.base", *COMMON},
    "execution": {
        "bookkeeping",
        "config",
        "supervised_child",
        "hardware",
        "run",
        "recovery",
        "engines.base",
        "engines.registry",
        "verification",
        *COMMON,
    },
    "processes": COMMON,
    "pace": COMMON,
    "length": {"config.schema", *COMMON},
    "verification": {"config.schema", "run", "recovery", "engines.base", *COMMON},
    "config": {
        "",
        "hardware",
        *(f"run.{name}" for name in ("directory", "find", "changes", "reproduction", "manifest", "record")),
        *COMMON,
    },
    "hardware": COMMON,
    "recovery": {"config.schema", "run", *COMMON},
    "run": {"config.schema", *COMMON},
    "data": {"config.schema", "run.atomic", *COMMON},
    "synthesis": {"config.schema", "run.atomic", *COMMON},
    "engines.base": {"config.schema", "run", "recovery", "hardware", *COMMON},
    "engines.registry": {"engines.base", *COMMON},
    "engines.memory": {"recovery", "run.atomic", "run.changes", *COMMON},
    "engines.states": {"run", *COMMON},
    "engines.latency": {"engines.states", *COMMON},
    "engines.devices": {"hardware", *COMMON},
    "engines.loader_start": COMMON,
    "engines.signatures": COMMON,
    "engines.together": {"engines.memory", "recovery", *COMMON},
    "errors": {"passwords"},
    "passwords": set(),
    "decisions": set(),
}
SHARED = {
    f"engines.{name}"
    for name in ("base", "devices", "latency", "loader_start", "memory", "signatures", "states", "together")
}
ENGINE_MAY_IMPORT = {*SHARED, "config.schema", "run", "recovery", "data", "synthesis", "hardware", *COMMON}
# Libraries that only some rooms know.
KNOWN_ONLY_TO = {
    "hydra": ("cli", "config", "sweep"),
    "omegaconf": ("cli", "config", "sweep"),
    "optuna": ("sweep",),
    "sqlalchemy": ("sweep",),
    "hydra_plugins": ("sweep",),
    "ultralytics": ("engines.detection",),
    "torch": ("engines.",),
    "torchvision": ("engines.classification",),
    "timm": ("engines.classification",),
    "accelerate": ("engines.classification",),
    "opacus": ("engines.classification",),
    "sklearn": ("engines.classification", "data"),
    "onnxruntime": ("engines.",),
    "tensorboard": ("run",),
    "pynvml": ("hardware",),
    "psutil": ("run", "hardware", "data", "supervisor"),
}


def room_of(module: str) -> str:
    """Return `config`, `engines.base`, `engines.detection` or the like."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["engines"] else parts[:1])


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, inside functions too; `from a import b` yields a.b where that is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def is_allowed(imported: str, allowed: set[str]) -> bool:
    name = imported.removeprefix("hsr_train").removeprefix(".")
    return any(name == a or (a and name.startswith(f"{a}.")) for a in allowed)


def test_modules_are_found() -> None:
    assert len(MODULES) > 60
    assert {room_of(module) for module in MODULES} >= {*MAY_IMPORT, "engines.detection", "engines.classification"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    room = room_of(module)
    if room == "engines":
        room = "engines.base"
    allowed = MAY_IMPORT.get(room, ENGINE_MAY_IMPORT) | ({room} if room else set())
    ours = [name for name in imports(MODULES[module]) if name.split(".")[0] == "hsr_train"]
    assert [name for name in ours if not is_allowed(name, allowed)] == [], f"{room} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module: str) -> None:
    room = f"{room_of(module)}."
    for name in imports(MODULES[module]):
        rooms = KNOWN_ONLY_TO.get(name.split(".")[0])
        assert rooms is None or room.startswith(tuple(r if r.endswith(".") else f"{r}." for r in rooms)), name


@pytest.mark.parametrize("module", MODULES)
def test_module_is_described_and_of_a_readable_size(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "a module begins with what it is for"
    assert docstring.splitlines()[0].endswith((".", ":")) or len(docstring.splitlines()) > 1
    assert len(text.splitlines()) <= MOST_LINES
    assert MODULES[module].stem not in ("utils", "helpers", "misc")


@pytest.mark.parametrize("task", ENGINES)
def test_registry_names_a_class_of_the_engines_own_folder(task: str) -> None:
    module, _, name = ENGINES[task].partition(":")
    assert room_of(module).startswith("engines.") and module in MODULES
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


DETECTION = [module for module in MODULES if room_of(module) == "engines.detection"]


@pytest.mark.parametrize("module", DETECTION)
def test_ultralytics_is_brought_up_before_it_is_imported(module: str) -> None:
    """Imported by itself it would read the user's settings and ask the network."""
    ready = False
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            ready = ready or (isinstance(node.value.func, ast.Name) and node.value.func.id == "bring_up")
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        assert ready or not any(name.split(".")[0] == "ultralytics" for name in names)


def test_light_rooms_load_no_heavy_library() -> None:
    rooms = ("config", "hardware", "run", "data", "synthesis", "errors", "decisions", "cli", "supervisor")
    light = [m for m in MODULES if room_of(m) in rooms]
    light.remove("hsr_train.run.tensorboard_child")
    program = (
        f"import importlib, sys\nfor name in {light!r}:\n    importlib.import_module(name)\n"
        "print(*sorted({'torch', 'ultralytics', 'torchvision', 'tensorboard', 'matplotlib', 'onnxruntime'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
