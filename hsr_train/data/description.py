"""What a data.yaml says: class names, the set's root folder and where each split lies.

Read once by `yolo.load_detection_set`; `listing` turns the entries of a split into files. Nothing is executed or
downloaded, whatever the file asks for. Every scalar is read as text (YAML's base schema), so that class names such as
`yes`, `010` or `1e3` stay what the user wrote.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

SPLITS = ("train", "val", "test")
_KEY = "data.path"


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


def read_description(path: str | Path, decisions: Decisions) -> Description:
    """Read a data.yaml.

    Args:
        path: The file as the user typed it; relative to the current directory.
        decisions: Receives what had to be assumed (another root folder, generated class names).

    Raises:
        InputError: With every problem of the file.
    """
    yaml_path = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (keeps symbolic links)
    content = _parse(yaml_path, _read_text(yaml_path))
    problems: list[Problem] = []
    shown = str(yaml_path)

    if "validation" in content and not content.get("val"):
        content["val"] = content.pop("validation")
        decisions.record("data", "validation", "data.yaml says `validation:`; read as `val:`")
    names = _names(content, shown, problems, decisions)
    pose_columns = _pose_columns(content, shown, problems)
    if content.get("channels") and _whole(content["channels"]) != 3:
        problems.append(
            Problem(f"{shown}: channels", str(content["channels"]), "only 3-channel (colour) training is supported",
                    "remove the key: grey images are read as colour")
        )  # fmt: skip
    texts = {split: _split_texts(content, split, shown, problems) for split in SPLITS}
    texts = {split: entry for split, entry in texts.items() if entry}
    if "train" not in texts and not problems:
        keys = ", ".join(map(str, content)) or "nothing"
        problems.append(
            Problem(f"{shown}: train", f"missing (the file has {keys})", "a folder, a list file, or a list of these",
                    "add for example `train: images/train`")
        )  # fmt: skip
    if problems:
        raise InputError(problems)
    root = _root(content.get("path"), yaml_path, texts, decisions)
    entries = {split: [_resolve(root, text, decisions) for text in entry] for split, entry in texts.items()}
    return Description(yaml_path, root, names, entries, pose_columns)


class _TextLoader(yaml.BaseLoader):
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
    if path.is_dir():
        found = sorted(p.name for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        remedy = f"data.path={path / found[0]}" if found else "give the data.yaml of a YOLO set"
        raise InputError(Problem(_KEY, str(path), "is a folder; a data.yaml file is needed", remedy))
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
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


def _names(content: dict[str, Any], shown: str, problems: list[Problem], decisions: Decisions) -> list[str]:
    given, nc = content.get("names"), content.get("nc")
    count = _whole(nc) if nc not in (None, "") else None
    if nc not in (None, "") and (count is None or count < 1):
        problems.append(Problem(f"{shown}: nc", str(nc), "the number of classes: a whole number from 1"))
        return []
    if given in (None, "", [], {}):
        if count is None:
            problems.append(
                Problem(f"{shown}: names", "missing", "the class names, as a list or as `0: name` lines",
                        "add for example `names: [cup, bottle]`")
            )  # fmt: skip
            return []
        decisions.record("data", f"class_0 to class_{count - 1}", "data.yaml gives nc and no names")
        return [f"class_{i}" for i in range(count)]
    if isinstance(given, dict):
        ids = {_whole(key): key for key in given}
        if sorted(ids, key=lambda i: -1 if i is None else i) != list(range(len(given))):
            problems.append(
                Problem(f"{shown}: names", ", ".join(map(str, given)), f"class ids are 0 to {len(given) - 1}, each once",
                        "number the classes from 0 without a gap")
            )  # fmt: skip
            return []
        names = [given[ids[i]] for i in range(len(given))]
    elif isinstance(given, list):
        names = given
    else:
        problems.append(Problem(f"{shown}: names", str(given), "must be a list or `0: name` lines"))
        return []
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            problems.append(Problem(f"{shown}: names", f"class {index} is {name!r}", "each name is plain text"))
    if count is not None and count != len(names):
        problems.append(
            Problem(
                f"{shown}: nc", str(count), f"`names` has {len(names)} entries", "correct one of them, or leave nc out"
            )
        )
    if all(isinstance(name, str) for name in names):
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(Problem(f"{shown}: names", name, "is the name of more than one class"))
    return names


def _pose_columns(content: dict[str, Any], shown: str, problems: list[Problem]) -> int:
    shape = content.get("kpt_shape")
    if shape in (None, ""):
        return 0
    numbers = [_whole(v) for v in shape] if isinstance(shape, list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[0] < 1 or numbers[1] not in (2, 3):
        problems.append(Problem(f"{shown}: kpt_shape", str(shape), "[number of points, 2 or 3]"))
        return 0
    return 5 + numbers[0] * numbers[1]


def _split_texts(content: dict[str, Any], split: str, shown: str, problems: list[Problem]) -> list[str]:
    given = content.get(split)
    if given in (None, "", "~", "null", []):
        return []
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        problems.append(
            Problem(f"{shown}: {split}", str(given), "a folder of images, a list file (.txt), or a list of these")
        )
        return []
    return texts


def _root(given: Any, yaml_path: Path, texts: dict[str, list[str]], decisions: Decisions) -> Path:
    """Return the folder that split entries are relative to.

    `path` is relative to the YAML's folder. Sets that were moved often keep a stale `path`: where it does not exist
    and the YAML's own folder holds the training split, that folder is taken and recorded.
    """
    beside = yaml_path.parent
    if given in (None, "", "~", "null"):
        return beside
    if not isinstance(given, str):
        raise InputError(Problem(f"{yaml_path}: path", str(given), "must be one folder"))
    root = Path(os.path.normpath(beside / Path(given).expanduser()))
    if root.is_dir():
        return root
    if all((beside / text).exists() or _without_parent(beside, text) for text in texts["train"]):
        decisions.record(
            "data", str(beside), f"data.yaml's `path: {given}` does not exist here; its own folder has the images"
        )
        return beside
    raise InputError(
        Problem(f"{yaml_path}: path", given, f"no such folder (looked for {root})",
                "correct it, or remove the line if the images lie beside the file")
    )  # fmt: skip


def _without_parent(root: Path, text: str) -> Path | None:
    """Return `root/x` for an entry `../x` that does not exist: so a popular exporter writes what lies beside the YAML."""
    stripped = root / text.removeprefix("../")
    return stripped if text.startswith("../") and not (root / text).exists() and stripped.exists() else None


def _resolve(root: Path, text: str, decisions: Decisions) -> Path:
    beside = _without_parent(root, text)
    if beside is not None:
        decisions.record("data", str(beside), f"data.yaml says {text}, which does not exist; taken without the ../")
        return beside
    return Path(os.path.normpath(root / Path(text).expanduser()))
