"""An installed wheel works without the checkout, from any directory: conf/ lies inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it as an installer would; returns the folder to import from."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("hsr_train-*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hsr_train", *arguments]
    return subprocess.run(command, cwd=cwd, env=importing_from(site), capture_output=True, text=True, check=False)


def importing_from(site: Path) -> dict[str, str]:
    """The environment in which the unpacked wheel comes before the checkout."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ["PYTHONPATH"]])}


def test_wheel_composes_in_any_directory(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "--cfg", "job", "model=yolov8l", "gpu_tier=high")
    assert done.returncode == 0, done.stderr
    assert "name: yolov8l" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_wheel_holds_every_yaml_of_the_checkout(installed: Path) -> None:
    for folder, minimum in (("conf", 40), ("sweeps", 0)):
        packed = {
            p.relative_to(installed / "hsr_train" / folder) for p in (installed / "hsr_train" / folder).rglob("*.yaml")
        }
        ours = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*.yaml")}
        assert packed == ours
        assert len(packed) >= minimum


def test_wheel_is_what_was_imported(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import hsr_train; print(hsr_train.__file__)"]
    done = subprocess.run(
        command, cwd=tmp_path, env=importing_from(installed), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith(str(installed))
