"""Where weights come from, and what happens to files that are not what they should be."""

from __future__ import annotations

import http.server
import io
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint

from hsr_train.config import architectures
from hsr_train.config.schema import ModelConfig
from hsr_train.decisions import Decisions
from hsr_train.engines.detection import weights
from hsr_train.errors import InputError
from hsr_train.run.atomic import write_bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "mine.pt", names=["cup", "plate", "fork"])


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection, at once: what a machine without a network gives."""
    monkeypatch.setattr(weights, "DOWNLOAD_URL", "http://127.0.0.1:9/{name}.pt")


def resolve(
    tmp_path: Path, spec: str = "auto", *, name: str = "yolov8n", demo: bool = False, typed: bool = False, **more: Any
) -> tuple[weights.Weights, Decisions]:
    decisions = Decisions()
    config = ModelConfig(name=name, weights=spec, **more)
    found = weights.resolve(
        config, cache_dir=tmp_path / "cache", is_demo=demo, model_is_typed=typed, decisions=decisions
    )
    return found, decisions


def refusal(file: Path, typed_name: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        weights.inspect(file, typed_name)
    (problem,) = caught.value.problems
    assert problem.key == "model.weights"
    assert str(file) in problem.value
    assert problem.remedy
    return problem.allowed


# ---- where they come from


def test_scratch_needs_no_file(tmp_path: Path) -> None:
    found, decisions = resolve(tmp_path, "scratch")
    assert found == weights.Weights("scratch", "yolov8n", num_modules=23)
    assert not decisions


def test_file_is_described(tmp_path: Path, checkpoint: Path) -> None:
    found, _ = resolve(tmp_path, str(checkpoint), name="yolov8x")
    assert (found.source, found.architecture, found.imgsz) == ("file", "yolov8n", 96)
    assert found.names == ["cup", "plate", "fork"]
    assert found.file == checkpoint.resolve()
    assert found.sha256 is not None and len(found.sha256) == 64


def test_file_relative_to_the_current_directory_becomes_absolute(checkpoint: Path, tmp_path: Path) -> None:
    Path("here.pt").write_bytes(checkpoint.read_bytes())
    found, _ = resolve(tmp_path, "here.pt")
    assert found.file == Path.cwd() / "here.pt"


def test_search_prefers_weights_dirs_then_current_directory_then_cache(tmp_path: Path, checkpoint: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    places = [first, second, Path.cwd(), tmp_path / "cache" / "weights"]
    for place in places:
        write_bytes(place / "yolov8n.pt", checkpoint.read_bytes())
    for place in places:
        found, decisions = resolve(tmp_path, weights_dirs=[str(first), str(second)])
        assert found.file == (place / "yolov8n.pt").resolve()
        assert [(d.key, d.value) for d in decisions] == [("model.weights", str(found.file))]
        (place / "yolov8n.pt").unlink()


def test_search_takes_only_the_model_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    write_bytes(tmp_path / "dir" / "yolov8s.pt", checkpoint.read_bytes())
    with pytest.raises(InputError, match=r"yolov8n\.pt is neither in .*dir"):
        resolve(tmp_path, weights_dirs=[str(tmp_path / "dir")])


def test_pretrained_file_of_another_architecture_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    """yolov8s.pt that holds a yolov8n: renamed by mistake."""
    write_bytes(tmp_path / "dir" / "yolov8s.pt", checkpoint.read_bytes())
    with pytest.raises(InputError, match=r"holds yolov8n, but model=yolov8s is asked for"):
        resolve(tmp_path, name="yolov8s", weights_dirs=[str(tmp_path / "dir")])


def test_typed_model_that_the_file_contradicts_is_refused(checkpoint: Path) -> None:
    assert "holds yolov8n, but model=yolo11n" in refusal(checkpoint, "yolo11n")


def test_typed_model_that_the_file_has_is_taken(tmp_path: Path, checkpoint: Path) -> None:
    assert resolve(tmp_path, str(checkpoint), typed=True)[0].architecture == "yolov8n"


@pytest.mark.parametrize("name", architectures.NAMES)
def test_architecture_is_named_as_users_type_it(name: str) -> None:
    assert weights.architecture_name(SimpleNamespace(yaml=weights.architecture_yaml(name))) == name


@pytest.mark.parametrize(("stem", "scale", "name"), [("yolov8", "n", "yolov8n"), ("yolov8-p2", "x", "yolov8x-p2")])
def test_architecture_of_a_file_that_names_its_scale_apart(stem: str, scale: str, name: str) -> None:
    description = {"yaml_file": f"/somewhere/{stem}.yaml", "scale": scale}
    assert weights.architecture_name(SimpleNamespace(yaml=description)) == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov5n", "yolov8n-p2", "yolov9t", "yolov10n", "yolo11n", "yolo26n"])
def test_file_of_any_family_is_described_and_agrees_with_its_name(tmp_path: Path, name: str) -> None:
    assert weights.inspect(write_checkpoint(tmp_path / "a.pt", name), name).architecture == name


def test_model_description_in_the_current_directory_is_not_taken(tmp_path: Path, checkpoint: Path) -> None:
    """People who work with ultralytics have such files lying about."""
    for name in ("yolov8.yaml", "yolov8n.yaml"):
        Path(name).write_text("nc: 1\nbackbone: []\nhead: []\n")
    assert weights.inspect(checkpoint, "yolov8n").architecture == "yolov8n"


def test_demo_set_without_pretrained_weights_trains_from_scratch_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found, decisions = resolve(tmp_path, demo=True)
    assert found.source == "scratch"
    assert [(d.key, d.value) for d in decisions] == [("model.weights", "scratch")]
    assert any(r.levelname == "WARNING" and "trains from scratch" in r.message for r in caplog.records)


@pytest.mark.parametrize(("spec", "demo"), [("auto", False), ("pretrained", False), ("pretrained", True)])
def test_pretrained_weights_that_cannot_be_had_are_an_error(tmp_path: Path, spec: str, demo: bool) -> None:
    with pytest.raises(InputError) as caught:
        resolve(tmp_path, spec, demo=demo)
    (problem,) = caught.value.problems
    assert problem.key == "model.weights"
    assert str(tmp_path / "cache" / "weights") in problem.allowed
    assert "model.weights=scratch" in problem.remedy and "yolov8n.pt" in problem.remedy


# ---- files that are not what they should be


@pytest.mark.parametrize("spec", ["nothing.pt", "folder.pt", "folder", "~/nothing.pt", "pretraind"])
def test_missing_file_or_folder_is_refused(tmp_path: Path, spec: str) -> None:
    Path("folder.pt").mkdir()
    Path("folder").mkdir()
    with pytest.raises(InputError, match="is a folder, not a file|does not exist"):
        resolve(tmp_path, spec)


def damaged(content: bytes) -> dict[str, bytes]:
    size = len(content)
    flipped = bytearray(content)
    flipped[size // 2 : size // 2 + 4096] = bytes(4096)
    rng = np.random.default_rng(0)
    cases = {
        "empty": b"",
        "one byte": b"\x80",
        "text": b"not a checkpoint\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(100),
        "zip without entries": b"PK\x05\x06" + bytes(18),
        "zip magic": b"PK\x03\x04" + rng.bytes(500),
        "no end": content[:-1],
        "zeros inside": bytes(flipped),
    }
    cases |= {f"cut at {share}": content[: int(size * share)] for share in (0.01, 0.3, 0.99)}
    cases |= {f"random {n}": rng.bytes(n) for n in (3, 50, 1000, 100_000)}
    cases |= {f"random pickle {n}": b"\x80\x02" + rng.bytes(60) for n in range(30)}
    return cases


def test_damaged_file_is_refused_whatever_the_damage(tmp_path: Path, checkpoint: Path) -> None:
    """`zeros inside` may hit a tensor, which nothing can notice but a checksum: the zip has one."""
    file = tmp_path / "damaged.pt"
    for name, content in damaged(checkpoint.read_bytes()).items():
        file.write_bytes(content)
        try:
            weights.inspect(file, None)
        except InputError as error:
            assert len(str(error).splitlines()) == 2, (name, str(error))
        else:
            assert name == "zeros inside", name


def test_file_with_another_suffix_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    file = tmp_path / "best.onnx"
    file.write_bytes(checkpoint.read_bytes())
    assert ".pt" in refusal(file)


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside a real model"])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, checkpoint: Path, form: str) -> None:
    victim = tmp_path / "ran"
    evil = {"model": Malicious(f"touch {victim}")}
    file = tmp_path / "evil.pt"
    if form == "bare pickle":
        file.write_bytes(pickle.dumps(evil))
    elif form == "beside a real model":
        content = torch.load(checkpoint, weights_only=False)
        torch.save(content | {"extra": Malicious(f"touch {victim}")}, file)
    else:
        torch.save(evil, file, _use_new_zipfile_serialization=form == "zip")
    message = refusal(file)
    assert not victim.exists()
    if form != "bare pickle":
        assert "system" in message and "allow-list" in message


def test_class_outside_the_allow_list_is_named(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2), "extra": io.StringIO()}, tmp_path / "a.pt")
    assert "StringIO" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weight": torch.zeros(3)}, "where an ultralytics detection model should be"),
        ({"model": torch.zeros(3)}, "where an ultralytics detection model should be"),
        ({"ema": torch.zeros(3)}, "where an ultralytics detection model should be"),
        ({"model": {"weight": torch.zeros(3)}}, "where an ultralytics detection model should be"),
        ({"model": torch.nn.Linear(2, 2)}, "where an ultralytics detection model should be"),
        ({}, "where an ultralytics detection model should be"),
        ([1, 2], "checkpoint"),
        (torch.zeros(3), "checkpoint"),
        ("text", "checkpoint"),
    ],
)
def test_file_without_a_detection_model_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert words in message
    assert "NoneType" not in message


def test_segmentation_model_is_refused_by_its_task(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "yolov8n-seg.pt", "yolov8n-seg")
    assert "segmentation model" in refusal(file)


def test_training_arguments_of_another_shape_do_no_harm(tmp_path: Path, checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=False)
    for arguments in (None, {}, {"imgsz": [64, 96]}, {"imgsz": "large"}):
        torch.save(content | {"train_args": arguments}, tmp_path / "a.pt")
        assert weights.inspect(tmp_path / "a.pt", None).imgsz is None


@pytest.mark.parametrize("folder", ["Ann's run", " two  spaces ", "a,b(c)", "日本語 ü", "-dash", "yolov5n.pt"])
def test_any_path_is_read(tmp_path: Path, checkpoint: Path, folder: str) -> None:
    file = tmp_path / folder / "best.pt"
    write_bytes(file, checkpoint.read_bytes())
    assert weights.inspect(file, None).file == file


@pytest.mark.parametrize("name", ["it's.pt", "yolov5n.pt", " best.pt"])
def test_any_name_is_read(tmp_path: Path, checkpoint: Path, name: str) -> None:
    file = tmp_path / name
    write_bytes(file, checkpoint.read_bytes())
    assert weights.inspect(file, None).file == file


# ---- the one download


class Server(http.server.BaseHTTPRequestHandler):
    status, content, promised, requests = 200, b"", 0, 0

    def do_GET(self) -> None:  # noqa: N802 (the library's name)
        type(self).requests += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.promised))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {"requests": 0})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as httpd:
        monkeypatch.setattr(weights, "DOWNLOAD_URL", f"http://127.0.0.1:{httpd.server_port}/{{name}}.pt")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield handler
        httpd.shutdown()
        thread.join()


def offer(server: type[Server], content: bytes, *, status: int = 200, promised: int | None = None) -> None:
    server.status, server.content = status, content
    server.promised = len(content) if promised is None else promised


def test_download_is_kept_in_the_cache_and_not_repeated(
    server: type[Server], tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    offer(server, checkpoint.read_bytes())
    stored = tmp_path / "cache" / "weights" / "yolov8n.pt"
    assert resolve(tmp_path)[0].file == stored
    assert resolve(tmp_path)[0].file == stored
    assert server.requests == 1
    assert stored.read_bytes() == checkpoint.read_bytes()
    assert any("Downloading http" in r.message for r in caplog.records)


@pytest.mark.parametrize("fault", ["missing", "cut off", "empty and cut off"])
def test_failed_download_leaves_nothing_behind(
    server: type[Server], tmp_path: Path, checkpoint: Path, fault: str
) -> None:
    content = checkpoint.read_bytes()
    if fault == "missing":
        offer(server, b"", status=404)
    else:
        offer(server, content[: len(content) // 2] if fault == "cut off" else b"", promised=len(content))
    with pytest.raises(InputError, match="nor could it be downloaded"):
        resolve(tmp_path)
    assert server.requests == 1
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_server_that_does_not_speak_http_is_a_failed_download(
    server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "do_GET", lambda self: self.wfile.write(b"\x16\x03\x01 what?\n"))
    with pytest.raises(InputError, match="nor could it be downloaded"):
        resolve(tmp_path)


def test_downloaded_file_that_is_no_checkpoint_is_refused(server: type[Server], tmp_path: Path) -> None:
    """A captive portal answers everything with its login page."""
    offer(server, b"<html>Please log in</html>")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        resolve(tmp_path)


def test_scratch_and_file_never_ask_the_network(server: type[Server], tmp_path: Path, checkpoint: Path) -> None:
    resolve(tmp_path, "scratch")
    resolve(tmp_path, str(checkpoint))
    assert server.requests == 0
