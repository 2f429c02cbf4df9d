"""TensorBoard events without torch or tensorflow, and a server that never outlives its run."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from hsr_train.errors import InputError, RunError
from hsr_train.run import atomic, events, tensorboard
from hsr_train.run.tensorboard import EventWriter, TensorboardServer, serve_forever

ROOT = Path(__file__).resolve().parents[1]


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def port() -> int:
    """Give a port that is free now, with free ones after it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return min(int(probe.getsockname()[1]), 65_000)


def test_scalars_images_and_text_are_read_by_tensorboard(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, :30] = (255, 0, 0)
    with EventWriter(tmp_path) as writer:
        for epoch in (1, 2, 3):
            writer.scalar("loss/box", 1 / epoch, epoch)
        writer.image("val/samples", picture, 3)
        writer.text("config", "```yaml\nKüche: 1\n```")
    found = read(tmp_path)
    assert [(s.step, s.value) for s in found.Scalars("loss/box")] == [
        (epoch, float(np.float32(1 / epoch))) for epoch in (1, 2, 3)
    ]
    (image,) = found.Images("val/samples")
    assert (image.step, image.width, image.height) == (3, 60, 40)
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(decoded, picture), "red and blue swapped?"
    (text,) = found.Tensors("config")
    assert text.tensor_proto.string_val[0].decode() == "```yaml\nKüche: 1\n```"


def test_a_photograph_is_stored_as_jpeg_and_stays_close(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    picture = cv2.resize(draws.integers(0, 255, (64, 64, 3), dtype=np.uint8), (640, 640), interpolation=cv2.INTER_CUBIC)
    with EventWriter(tmp_path) as writer:
        writer.image("train/batch", picture, 1)
    (image,) = read(tmp_path).Images("train/batch")
    assert image.encoded_image_string[:2] == b"\xff\xd8" and len(image.encoded_image_string) < 256 * 1024
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(decoded.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (3, 4, 4)])
def test_an_image_of_another_form_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with EventWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match=r"shape \(height, width, 3\)"):
            writer.image("x", np.zeros(shape, dtype=np.uint8), 1)
        with pytest.raises(ValueError, match="float64"):
            writer.image("x", np.zeros((4, 4, 3)), 1)  # type: ignore[arg-type]


def test_flushed_events_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom hsr_train.run.tensorboard import EventWriter\n"
        "w = EventWriter(Path(sys.argv[1]))\n"
        "for epoch in range(1, 6):\n    w.scalar('loss', epoch, epoch)\nw.flush()\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [step for step, _ in curve(tmp_path, "loss")] == [1, 2, 3, 4, 5]


def test_writing_events_imports_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    for name in ("torch", "tensorflow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    code = (
        "import sys, numpy\nfrom pathlib import Path\nfrom hsr_train.run.tensorboard import EventWriter\n"
        "w = EventWriter(Path(sys.argv[1]))\nw.scalar('a', 1, 1); w.text('b', 'c'); w.purge_after(1)\n"
        "w.image('d', numpy.zeros((2, 2, 3), dtype='uint8'), 1); w.close()\n"
        "print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "events"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_resumed_writer_purges_later_steps_so_that_the_curves_are_the_same(tmp_path: Path) -> None:
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    picture = np.zeros((4, 4, 3), dtype=np.uint8)

    def write(writer: EventWriter, epochs: range, salt: float = 0.0) -> None:
        for epoch in epochs:
            writer.scalar("loss", epoch / 7 + salt, epoch)
            if epoch % 4 == 0:
                writer.scalar("rare", epoch + salt, epoch)
                writer.image("picture", picture, epoch)

    with EventWriter(through) as writer:
        writer.text("config", "as typed")
        write(writer, range(1, 7))
    with EventWriter(resumed) as writer:
        writer.text("config", "as typed")
        write(writer, range(1, 4))
        write(writer, range(4, 6), salt=100)  # epochs whose state was never saved
        writer.flush()
        with writer.path.open("ab") as file:
            file.write(b"\x20\x00\x00\x00\x00\x00\x00\x00torn")
    with EventWriter(resumed) as writer:
        writer.purge_after(3)
        write(writer, range(4, 7))
    for tag in ("loss", "rare"):
        assert curve(resumed, tag) == curve(through, tag)
    assert [image.step for image in read(resumed).Images("picture")] == [4]
    assert len(read(resumed).Tensors("config")) == 1
    assert len(files(resumed)) == 2


def test_a_viewer_that_read_only_the_first_file_is_told_to_forget(tmp_path: Path) -> None:
    """Without the rewriting of older files, which an open viewer does not see, the session's start must do."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventWriter(tmp_path) as writer:
        for epoch in (1, 2, 3):
            writer.scalar("loss", epoch, epoch)
    viewer = EventAccumulator(str(tmp_path)).Reload()
    with EventWriter(tmp_path) as writer:
        writer.purge_after(1)
    assert [point.step for point in viewer.Reload().Scalars("loss")] == [1]


@pytest.mark.parametrize("tail", [b"", b"\x01", b"\0" * 4096, random.Random(0).randbytes(300)])
def test_purging_drops_a_torn_or_zeroed_end_and_keeps_every_event_before(tmp_path: Path, tail: bytes) -> None:
    with EventWriter(tmp_path) as writer:
        for epoch in (1, 2, 3):
            writer.scalar("loss", epoch, epoch)
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole + tail)
    assert events.drop_later_steps(tmp_path, 10) == 0
    assert writer.path.read_bytes() == whole
    assert events.drop_later_steps(tmp_path, 1) == 2
    assert curve(tmp_path, "loss") == [(1, 1.0)]


def test_files_sort_in_the_order_of_their_writers(tmp_path: Path) -> None:
    written = []
    for epoch in range(1, 4):
        with EventWriter(tmp_path) as writer:
            writer.scalar("loss", epoch, epoch)
        written.append(writer.path)
    assert files(tmp_path) == written
    assert [step for step, _ in curve(tmp_path, "loss")] == [1, 2, 3]


def test_a_full_disk_ends_the_events_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with EventWriter(tmp_path) as writer:
        assert writer._file is not None
        writer._file.close()
        writer._file = Path("/dev/full").open("wb")  # noqa: SIM115
        writer._records = type(writer._records)(writer._file)
        for epoch in (1, 2):
            writer.scalar("loss", epoch, epoch)
            writer.flush()
    assert caplog.text.count("No more TensorBoard events in this run") == 1
    assert "No space left on device" in caplog.text


def test_a_folder_that_cannot_be_made_ends_the_events_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("not a folder")
    with EventWriter(tmp_path / "tensorboard") as writer:
        writer.scalar("loss", 1, 1)
        writer.purge_after(0)
    assert caplog.text.count("No more TensorBoard events in this run") == 1


def test_a_disk_that_fills_while_purging_ends_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with EventWriter(tmp_path) as writer:
        writer.scalar("loss", 1, 1)
    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with EventWriter(tmp_path) as writer:
        writer.purge_after(0)
        writer.scalar("loss", 1, 1)
    assert caplog.text.count("No more TensorBoard events in this run") == 1


def test_the_server_shows_the_events_on_the_next_free_port_and_ends_with_its_block(tmp_path: Path, port: int) -> None:
    with EventWriter(tmp_path / "run") as writer:
        for epoch in (1, 2, 3):
            writer.scalar("loss", epoch, epoch)
    with EventWriter(tmp_path / "run") as writer:
        writer.purge_after(1)
        writer.scalar("loss", 20, 2)
    before = set(psutil.Process().children(recursive=True))
    with socket.create_server(("127.0.0.1", port)), TensorboardServer(tmp_path, port=port) as server:
        assert server.url == f"http://127.0.0.1:{server.port}/" and server.port > port
        children = set(psutil.Process().children(recursive=True)) - before
        assert children
        address = f"{server.url}data/plugin/scalars/scalars?run=run&tag=loss"

        def points() -> list[Any]:
            try:
                with urllib.request.urlopen(address, timeout=30) as answer:
                    return [point[1:] for point in json.loads(answer.read())]
            except urllib.error.HTTPError as error:  # not loaded yet
                error.close()
                return []

        wait_for(lambda: points() == [[1, 1.0], [2, 20.0]])
    wait_for(lambda: not any(lives(child) for child in children), timeout_s=60)


def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path, port: int) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hsr_train.run.tensorboard import TensorboardServer\n"
        "with TensorboardServer(Path(sys.argv[1]), port=int(sys.argv[2])) as server:\n"
        "    print(server.url, flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path, str(port)], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline().startswith(b"http://127.0.0.1:")
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children and all(lives(child) for child in children)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: not any(lives(child) for child in children), timeout_s=60)


def test_serve_forever_ends_at_ctrl_c_and_leaves_nothing(tmp_path: Path, port: int) -> None:
    code = (
        "import logging, sys\nfrom pathlib import Path\nfrom hsr_train.run.tensorboard import serve_forever\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "try:\n    serve_forever(Path(sys.argv[1]), '0.0.0.0', int(sys.argv[2]))\n"
        "except KeyboardInterrupt:\n    print('ended')"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert parent.stderr is not None
    lines = [parent.stderr.readline(), parent.stderr.readline()]
    assert f"TensorBoard serves {tmp_path} at http://127.0.0.1:" in lines[0]
    assert f"From other machines: http://{socket.gethostname()}:" in lines[1]
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGINT)
    out, _ = parent.communicate(timeout=60)
    assert out == "ended\n" and children
    wait_for(lambda: not any(lives(child) for child in children), timeout_s=60)


def test_the_server_moves_on_when_its_port_is_taken_under_its_feet(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True])
    is_free = tensorboard._is_free
    monkeypatch.setattr(tensorboard, "_is_free", lambda host, number: next(looks, None) or is_free(host, number))
    with socket.create_server(("127.0.0.1", port)), TensorboardServer(tmp_path, port=port) as server:
        assert server.port > port


def test_serve_forever_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output_dir: .*no such folder"):
        serve_forever(tmp_path / "missing")


def test_the_server_refuses_an_address_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensorboard\.host: 192\.0\.2\.1: not an address of this machine"):
        TensorboardServer(tmp_path, host="192.0.2.1").__enter__()


def test_the_server_says_so_when_every_port_is_taken(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "PORTS_TRIED", 0)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(InputError, match=rf"tensorboard\.port: {port}: {port} to {port} are all in use"),
    ):
        TensorboardServer(tmp_path, port=port).__enter__()


def test_a_server_that_cannot_start_shows_its_last_words(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise RuntimeError('broken installation')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunError, match="did not start(.|\n)*broken installation"):
        TensorboardServer(tmp_path, port=port).__enter__()


def test_a_server_that_never_answers_is_stopped(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = set(psutil.Process().children())
    with pytest.raises(RunError, match=r"did not answer at http://127\.0\.0\.1:\d+/ within 0\.3 s"):
        TensorboardServer(tmp_path, port=port, timeout_s=0.3).__enter__()
    assert not any(lives(child) for child in set(psutil.Process().children()) - before)
