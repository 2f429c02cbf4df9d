"""What a data.yaml says: class names, the set's root folder and where each split lies.

Read once by `yolo.load_detection_set`; `listing` turns the entries of a split into files. Nothing is executed or
downloaded, whatever the file asks for. Every scalar is read as text (YAML's base schema), so that class names such as
`yes`, `010` or `1e3` stay what the user wrote.
"""

# os.path answers False where pathlib raises (a name too long, a folder without permission, an unknown ~user).
# ruff: noqa: PTH110, PTH111, PTH112, PTH113, PTH118

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

try:  # PyYAML with libyaml reads a file of many class names ten times as fast.
    from yaml import CBaseLoader as BaseLoader
except ImportError:
    from yaml import BaseLoader  # type: ignore[assignment]

from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_KEY = "data.path"
_NOTHING: tuple[Any, ...] = (None, "", "~", "null", [], {})
"""What an empty value looks like when every scalar is read as text."""


@dataclass
class Description:
    """A data.yaml, read and checked.

    Attributes:
        yaml_path: The file, absolute.
        root: Folder that the split entries are relative to.
        names: Class names; the index is the class id.
        entries: For each split that the file gives, its folders or list files, absolute.
        pose_columns: Numbers on a line of a keypoint label (5 + points x dimensions), or 0 where the set has none.
    """

    yaml_path: Path
    root: Path
    names: list[str]
    entries: dict[str, list[Path]] = field(default_factory=dict)
    pose_columns: int = 0

    @property
    def list_files(self) -> list[Path]:
        """The entries that are list files."""
        return [entry for entries in self.entries.values() for entry in entries if os.path.isfile(entry)]


def read_description(
    path: str | Path, decisions: Decisions, *, need: Sequence[str], val_fraction: float | None = None
) -> Description:
    """Read a data.yaml.

    Args:
        path: The file as the user typed it; relative to the current directory.
        decisions: Receives what had to be assumed (another root folder, generated class names).
        need: Splits that must be given.
        val_fraction: `data.val_fraction`: stands in for a missing val, and has no effect on one that is there.

    Raises:
        InputError: With every problem of the file.
    """
    yaml_path = absolute_path(Path.cwd(), str(path))
    content = _parse(yaml_path, _read_text(yaml_path))
    problems: list[Problem] = []
    if content.get("validation") and not content.get("val"):
        content["val"] = content.pop("validation")
        decisions.record("data", "validation", "data.yaml says `validation:`; read as `val:`")
    names = _names(content, yaml_path, problems, decisions)
    pose_columns = _pose_columns(content, yaml_path, problems, decisions)
    if content.get("channels") and _whole(content["channels"]) != 3:
        problems.append(
            Problem(f"{yaml_path}: channels", str(content["channels"]), "must be 3: images are read in colour",
                    "remove the line; grey images are read, too")
        )  # fmt: skip
    texts = {split: _split_texts(content, split, yaml_path, problems) for split in SPLITS}
    texts = {split: entry for split, entry in texts.items() if entry}
    problems += _check_splits(
        yaml_path, [split for split in SPLITS if content.get(split) not in _NOTHING], need, val_fraction
    )
    root = _root(content.get("path"), yaml_path, texts, problems, decisions)
    if problems:
        raise InputError(problems)
    entries = {split: [_resolve(root, text, decisions) for text in entry] for split, entry in texts.items()}
    return Description(yaml_path, root, names, entries, pose_columns)


def absolute_path(folder: Path, text: str) -> Path:
    """Return the path that a text means: relative to a folder, absolute, or from a home folder.

    Symbolic links stay, except where the text goes upwards: that is meant from where a link leads.
    """
    joined = os.path.join(folder, os.path.expanduser(text))
    return Path(os.path.realpath(joined) if ".." in Path(joined).parts else os.path.normpath(joined))


class _TextLoader(BaseLoader):
    """PyYAML's base loader (all scalars are text) that refuses a repeated key instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key}` is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_text(path: Path) -> str:
    if os.path.isdir(path):
        found = sorted(p.name for p in path.glob("*.y*ml"))
        remedy = f"data.path={path / found[0]}" if found else "give the data.yaml of a YOLO set"
        raise InputError(Problem(_KEY, str(path), "is a folder; a data.yaml file is needed", remedy))
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml"))[:5] if os.path.isdir(path.parent) else []
        remedy = f"data.path={near[0]}" if near else "check the path, or leave data.path out for the built-in demo set"
        raise InputError(Problem(_KEY, str(path), "no such file", remedy)) from None
    except OSError as err:
        raise InputError(Problem(_KEY, str(path), f"cannot be read: {err.strerror}", "check its permissions")) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = raw[: err.start].count(b"\n") + 1
        raise InputError(
            Problem(f"{path}:{line}", f"byte 0x{raw[err.start]:02x}", "is not UTF-8 text", "save the file as UTF-8")
        ) from None
    if not text.strip():
        raise InputError(Problem(_KEY, str(path), "the file is empty", "it needs `train:`, `val:` and `names:`"))
    return text


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_TextLoader)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(err, "problem", None) or str(err).splitlines()[0]
        raise InputError(Problem(where, "", f"is not valid YAML: {what}", "correct that line")) from None
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "plain text"
        raise InputError(
            Problem(_KEY, str(path), f"holds {kind}; keys such as `train:`, `val:` and `names:` are needed",
                    "give the data.yaml of a YOLO set")
        )  # fmt: skip
    return content


def _whole(value: Any) -> int | None:
    """Return a whole number written as text (`21`, `21.0`), else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _names(content: dict[str, Any], yaml_path: Path, problems: list[Problem], decisions: Decisions) -> list[str]:
    """Return the class names by id; with problems, what could be read of them."""
    given, nc = content.get("names"), content.get("nc")
    count = None if nc in _NOTHING else _whole(nc)
    if nc not in _NOTHING and (count is None or count < 1):
        problems.append(Problem(f"{yaml_path}: nc", str(nc), "the number of classes: a whole number from 1"))
        count = None
    if given in _NOTHING:
        if count is None:
            problems.append(
                Problem(f"{yaml_path}: names", "missing", "the class names, as a list or as `0: name` lines",
                        "add for example `names: [cup, bottle]`")
            )  # fmt: skip
            return []
        decisions.record("data", f"class_0 to class_{count - 1}", "data.yaml gives nc and no names")
        return [f"class_{i}" for i in range(count)]
    if not isinstance(given, (list, dict)):
        problems.append(Problem(f"{yaml_path}: names", str(given), "must be a list or `0: name` lines"))
        return []
    if count is not None and count != len(given):
        problems.append(
            Problem(f"{yaml_path}: nc", str(count), f"`names` has {len(given)} entries",
                    "correct one of them, or leave nc out")
        )  # fmt: skip
    by_id = {_whole(key): name for key, name in given.items()} if isinstance(given, dict) else dict(enumerate(given))
    if set(by_id) != set(range(len(given))):
        problems.append(
            Problem(f"{yaml_path}: names", ", ".join(map(str, given)),
                    f"class ids are 0 to {len(given) - 1}, each once", "number them from 0 without a gap")
        )  # fmt: skip
        return []
    names = [by_id[i] for i in range(len(given))]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            problems.append(Problem(f"{yaml_path}: names", f"class {index} is {name!r}", "each name is plain text"))
    if repeated := [name for name, times in Counter(map(str, names)).items() if times > 1]:
        log.warning("%s gives several classes the same name: %s", yaml_path, ", ".join(repeated))
    return names


def _pose_columns(content: dict[str, Any], yaml_path: Path, problems: list[Problem], decisions: Decisions) -> int:
    shape = content.get("kpt_shape")
    if shape in _NOTHING:
        return 0
    numbers = [_whole(v) for v in shape] if isinstance(shape, list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[0] < 1 or numbers[1] not in (2, 3):
        problems.append(Problem(f"{yaml_path}: kpt_shape", str(shape), "[number of points, 2 or 3]"))
        return 0
    decisions.record("data", "boxes", "the set has keypoints (kpt_shape); only its boxes are used")
    return 5 + numbers[0] * numbers[1]


def _split_texts(content: dict[str, Any], split: str, yaml_path: Path, problems: list[Problem]) -> list[str]:
    given = content.get(split)
    if given in _NOTHING:
        return []
    entries = given if isinstance(given, list) else [given]
    texts = [entry for entry in entries if isinstance(entry, str) and entry.strip()]
    if len(texts) < len(entries):
        problems.append(
            Problem(f"{yaml_path}: {split}", str(given), "a folder of images, a list file (.txt), or a list of these")
        )
        return []
    return texts


def _check_splits(
    yaml_path: Path, given: Sequence[str], need: Sequence[str], val_fraction: float | None
) -> list[Problem]:
    problems = []
    for split in need:
        if split in given or (split == "val" and val_fraction is not None):
            continue
        remedy = f"add a line such as `{split}: images/{split}`"
        if split == "val":
            remedy = f"data.val_fraction=0.2 takes a share of train, or {remedy}"
        problems.append(Problem(f"{yaml_path}: {split}", "", f"is missing: a {split} split is needed", remedy))
    if val_fraction is not None and "val" in given:
        problems.append(
            Problem("data.val_fraction", str(val_fraction), f"has no effect: {yaml_path} has a `val:`",
                    "leave it out, or remove `val:` from the file")
        )  # fmt: skip
    return problems


def _root(
    given: Any, yaml_path: Path, texts: dict[str, list[str]], problems: list[Problem], decisions: Decisions
) -> Path:
    """Return the folder that split entries are relative to.

    `path` is relative to the YAML's folder. Sets that were moved often keep a stale `path`: where it does not exist
    and the YAML's own folder has the first split, that folder is taken and recorded.
    """
    beside = yaml_path.parent
    if given in _NOTHING:
        return beside
    if not isinstance(given, str):
        problems.append(Problem(f"{yaml_path}: path", str(given), "must be one folder"))
        return beside
    root = absolute_path(beside, given)
    if os.path.isdir(root):
        return root
    first = next(iter(texts.values()), [])
    if first and all(os.path.exists(absolute_path(beside, text)) or _without_parent(beside, text) for text in first):
        decisions.record(
            "data", str(beside), f"`path: {given}` of the data.yaml does not exist; the images lie beside it"
        )
    else:
        problems.append(
            Problem(f"{yaml_path}: path", given, f"no such folder (looked for {root})",
                    "correct it, or remove the line if the images lie beside the file")
        )  # fmt: skip
    return beside


def _without_parent(root: Path, text: str) -> Path | None:
    """Return `root/x` for an entry `../x` that does not exist, else None.

    A popular exporter writes the folders beside its YAML like that.
    """
    stripped = root / text.removeprefix("../")
    missing = text.startswith("../") and not os.path.exists(root / text)
    return stripped if missing and os.path.exists(stripped) else None


def _resolve(root: Path, text: str, decisions: Decisions) -> Path:
    beside = _without_parent(root, text)
    if beside is not None:
        decisions.record("data", str(beside), f"data.yaml says {text}, which does not exist; taken without the ../")
        return beside
    return absolute_path(root, text)
