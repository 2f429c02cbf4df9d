"""What the documents tell people to type is accepted, and what they link to exists."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from fake_machines import gpu, machine
from yolo_sets import make_yolo_set

from hsr_train import compose, hardware
from hsr_train.config.registration import SCHEMAS
from hsr_train.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GUIDES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("configuration", "recovery", "troubleshooting")),
]
NEEDS_A_RUN = ("resume=", "reproduce=", "runs=", "--config-dir")


def shell_lines(document: Path) -> list[str]:
    """Every line of the code blocks that name no language."""
    lines, fence = [], None
    for line in document.read_text().splitlines():
        if line.startswith("```"):
            fence = line if fence is None else None
        elif fence == "```":
            lines.append(line)
    return lines


def commands() -> list[list[str]]:
    """Every `python -m hsr_train …` line that needs no earlier run, without comments."""
    words = [
        shlex.split(line, comments=True)
        for document in DOCUMENTS
        for line in shell_lines(document)
        if line.startswith("python -m hsr_train")
    ]
    return [w[3:] for w in words if not any(word.startswith(NEEDS_A_RUN) for word in w)]


def test_documents_hold_commands() -> None:
    assert len(commands()) >= 7


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_documented_command_composes(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "detect", lambda *_, **__: machine(gpu(0, 12), gpu(1, 12)))
    make_yolo_set(tmp_path / "my")
    (tmp_path / "best.pt").write_bytes(b"composition does not read it")
    (tmp_path / "FOLDER").mkdir()
    if words[0] in ("--multirun", "-m"):  # the first point of what is searched stands for all
        words = [first_of(word) for word in words[1:]]
    compose(words)


def first_of(word: str) -> str:
    """Return a searched key with the first of its values."""
    key, _, value = word.partition("=")
    interval = re.search(r"(?:interval|choice|range)\(([^,)]+)", value)
    if interval is not None:
        return f"{key}={interval[1]}"
    return word if value.startswith(("[", "{", "'", '"')) else word.partition(",")[0]


@cache
def refused_by(task: str, override: str) -> str | None:
    try:
        compose([override] if override.startswith("task=") else [f"task={task}", override])
    except InputError as error:
        return f"{task}: {error}"
    return None


@pytest.mark.parametrize("document", GUIDES, ids=lambda p: p.name)
def test_every_override_in_the_text_composes(document: Path) -> None:
    """Inline code such as `train.batch=12`, with one value that needs no file, folder, run or GPU, for either task."""
    inline = set(re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)*=[A-Za-z0-9_.]+)`", document.read_text()))
    needs_more = re.compile(r"key=value|resume=|mode=|train\.device=\d|.*=(FILE|FOLDER)$")
    plain = [override for override in inline if not needs_more.match(override)]
    assert plain
    for override in plain:
        accepted = any(refused_by(task, override) is None for task in SCHEMAS)
        assert accepted, [refused_by(task, override) for task in SCHEMAS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_points_to_something(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target
    for name in re.findall(
        r"`((?:hsr_train|tests|conf|benchmarks|docs)/[\w./]+\.(?:py|md|yaml))`", document.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
