"""manifest.json: what a run was made of, enough to say later why a reproduction differs.

Versions, git state, machine, fingerprints, seeds and decisions. Written once at the start, through `atomic`. The
environment is never dumped as a whole, and passwords in addresses are masked.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem
from hsr_train.passwords import without_passwords
from hsr_train.processes import num_processes
from hsr_train.run.directory import RunDirectory

DISTRIBUTIONS = (
    "hsr_train",
    "torch",
    "torchvision",
    "ultralytics",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
    "albumentations",
    "pillow",
    "polars",
    "hydra-core",
    "omegaconf",
    "pyyaml",
    "tensorboard",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxslim",
    "nvidia-ml-py",
    "psutil",
    "tqdm",
)
# What changes numbers, devices or file places; each named, so that no secret of the environment slips in.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_CUDNN_V8_API_DISABLED",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "PYTHONHASHSEED",
    "YOLO_CONFIG_DIR",
    "YOLO_OFFLINE",
    "YOLO_AUTOINSTALL",
    "SLURM_JOB_ID",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
)
# The mappings that `drift` compares.
SECTIONS = ("python", "packages", "environment", "machine", "seeds", "fingerprints")
MAX_DIFF_CHARS = 200_000
MAX_UNTRACKED = 200
_GIT_TIMEOUT_S = 10


def build_manifest(
    *,
    decisions: Decisions,
    fingerprints: Mapping[str, Any],
    machine: Mapping[str, Any],
    seeds: Mapping[str, Any],
    command: Sequence[str],
) -> dict[str, Any]:
    """Return the content of manifest.json.

    Args:
        decisions: Every automatic choice with its reason.
        fingerprints: Content hashes of data and weights.
        machine: GPU, driver, memory and cores, as plain values.
        seeds: Every seed by name.
        command: What was typed.
    """
    working_directory = Path.cwd()
    code = git_state(Path(__file__).parent, tracking=Path(__file__).name)
    around = git_state(working_directory)
    if code is not None and around is not None and code["root"] == around["root"]:
        around = None
    return {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [without_passwords(word) for word in command],
        "working_directory": str(working_directory),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": package_versions(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "machine": dict(machine),
        "processes": num_processes(),
        "seeds": dict(seeds),
        "fingerprints": dict(fingerprints),
        "decisions": decisions.as_json(),
        "git": code,
        "git_of_working_directory": around,
    }


def read_manifest(run: RunDirectory, sections: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a run's manifest.json.

    Args:
        run: The run.
        sections: Mappings that must be in it.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        manifest = json.loads(run.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(
            Problem(str(run.manifest), "", reason, "restore it from a copy, or start a new run")
        ) from error
    if not isinstance(manifest, dict):
        raise InputError(Problem(str(run.manifest), "", "holds no mapping", "restore it from a copy"))
    missing = [name for name in sections if not isinstance(manifest.get(name), dict)]
    if missing:
        reason = f"is damaged: it has no {', '.join(missing)}"
        raise InputError(Problem(str(run.manifest), "", reason, "restore it from a copy"))
    return manifest


def package_versions() -> dict[str, str]:
    """Return the version of every installed distribution that can change a result."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path, *, tracking: str | None = None) -> dict[str, Any] | None:
    """Return the state of the git checkout that holds `folder`, or None if there is none (or no git).

    Args:
        folder: A folder in the work tree.
        tracking: A file in `folder` that must be tracked; otherwise the package merely lies inside somebody's
            checkout, say in its .venv.

    Returns:
        `root`, `commit` (None before the first), `branch`, `dirty`, `diff` (of tracked files against the commit, at
        most `MAX_DIFF_CHARS`), `diff_truncated`, `untracked` (names, at most `MAX_UNTRACKED`); what git could not say
        in time is None. Only `refused` where git will not look, as in another user's checkout.
    """
    root, complaint = _git(folder, "rev-parse", "--show-toplevel")
    if not root:
        return {"root": None, "refused": complaint} if complaint and "not a git repository" not in complaint else None
    if tracking is not None and _git(folder, "ls-files", "--error-unmatch", tracking)[0] is None:
        return None
    top = Path(root.strip())
    commit = (_git(top, "rev-parse", "--verify", "HEAD")[0] or "").strip() or None
    diff, _ = _git(top, "diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD" if commit else "--cached")
    untracked, _ = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
    names = None if untracked is None else [name for name in untracked.split("\0") if name]
    return {
        "root": str(top),
        "commit": commit,
        "branch": (_git(top, "symbolic-ref", "--short", "-q", "HEAD")[0] or "").strip() or None,
        "dirty": None if diff is None or names is None else bool(diff or names),
        "diff": None if diff is None else without_passwords(diff[:MAX_DIFF_CHARS]),
        "diff_truncated": diff is not None and len(diff) > MAX_DIFF_CHARS,
        "untracked": None if names is None else names[:MAX_UNTRACKED],
    }


def _git(folder: Path, *arguments: str) -> tuple[str | None, str]:
    """Return git's output and its complaint; no output if there is no git, it refuses, or it takes too long."""
    # A git hook that starts us sets GIT_DIR and the like: they would point every call at its own repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Optional locks off: looking must not disturb a git command that the user runs meanwhile.
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    output = done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
    return output, done.stderr.decode("utf-8", "replace").strip()
