"""The index of known files: what is trusted, what is read again, and where our caches lie."""

from __future__ import annotations

import logging
import multiprocessing
import os
from pathlib import Path

import pytest
from yolo_sets import make_yolo_set, write_picture

import hsr_train.data.files as files
from hsr_train.config.schema import DataConfig
from hsr_train.data.cache import cache_root
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError


def load(yaml_path: Path, cache: Path, *, need=("train", "val"), rehash=False, **options) -> DetectionSet:
    config = DataConfig(path=str(yaml_path), cache_dir=str(cache), **options)
    return load_detection_set(config, Decisions(), need=need, rehash=rehash, progress=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files whose content is read, from now on."""
    names: list[str] = []
    original = files._read

    def spy(path):
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(files, "_read", spy)
    return names


def the_index(cache: Path) -> Path:
    (index,) = (cache / "data").glob("*.index")
    return index


def test_second_start_reads_no_file_and_gives_the_same(tmp_path, cache, reads):
    yaml_path = make_yolo_set(tmp_path / "set", polygons=True)
    first = load(yaml_path, cache)
    assert len(reads) == 12
    reads.clear()
    second = load(yaml_path, cache)
    assert reads == []
    assert second.fingerprint == first.fingerprint
    assert second.record() == first.record()
    for name, split in first.splits.items():
        other = second.splits[name]
        assert [b.tolist() for b in split.labels] == [b.tolist() for b in other.labels]
        assert [[p.tolist() for p in s] for s in split.segments] == [[p.tolist() for p in s] for s in other.segments]
        assert split.shapes.tolist() == other.shapes.tolist()


def test_only_changed_and_new_files_are_read(tmp_path, cache, reads):
    yaml_path = make_yolo_set(tmp_path / "set")
    load(yaml_path, cache)
    reads.clear()
    (tmp_path / "set/labels/train/0001.txt").write_text("1 0.5 0.5 0.3 0.3\n")
    write_picture(tmp_path / "set/images/val/0001.jpg", seed=123)
    write_picture(tmp_path / "set/images/train/new.jpg", seed=124)
    checked = load(yaml_path, cache)
    assert sorted(reads) == ["0001.jpg", "0001.txt", "new.jpg", "new.txt"]
    assert checked.splits["train"].labels[1].shape == (1, 5)


def test_change_of_the_same_size_is_seen_by_its_time_in_nanoseconds(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    label = tmp_path / "set/labels/train/0000.txt"
    label.write_text("0 0.5 0.5 0.2 0.2")
    before = load(yaml_path, cache)
    status = label.stat()
    label.write_text("1 0.5 0.5 0.2 0.2")
    os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load(yaml_path, cache).fingerprint != before.fingerprint


def test_label_that_appears_or_goes_is_seen(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    label = tmp_path / "set/labels/train/0000.txt"
    text = label.read_text()
    label.unlink()
    assert load(yaml_path, cache).splits["train"].num_backgrounds == 1
    label.write_text(text)
    assert load(yaml_path, cache).splits["train"].num_backgrounds == 0
    label.unlink()
    assert load(yaml_path, cache).splits["train"].num_backgrounds == 1


def test_rehash_reads_every_file_and_finds_a_change_behind_an_old_time(tmp_path, cache, reads):
    yaml_path = make_yolo_set(tmp_path / "set")
    image = tmp_path / "set/images/train/0000.jpg"
    before = load(yaml_path, cache)
    status = image.stat()
    raw = bytearray(image.read_bytes())
    raw[len(raw) // 2] ^= 1
    image.write_bytes(raw)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(yaml_path, cache).fingerprint == before.fingerprint
    reads.clear()
    assert load(yaml_path, cache, rehash=True).fingerprint != before.fingerprint
    assert len(reads) == 12
    assert load(yaml_path, cache).fingerprint != before.fingerprint, "what rehash found is known from then on"


def test_other_number_of_classes_judges_the_labels_anew_but_trusts_the_images(tmp_path, cache, reads):
    yaml_path = make_yolo_set(tmp_path / "set", classes=("a", "b"))
    load(yaml_path, cache)
    reads.clear()
    yaml_path.write_text(yaml_path.read_text().replace("  1: b\n", ""))
    with pytest.raises(InputError, match="class ids are whole numbers from 0 to 0"):
        load(yaml_path, cache)
    assert {name[-4:] for name in reads} == {".txt"}


@pytest.mark.parametrize("damage", ["cut", "garbage", "flipped byte", "empty"])
def test_damaged_index_is_rebuilt_with_a_line(tmp_path, cache, caplog, damage):
    yaml_path = make_yolo_set(tmp_path / "set")
    before = load(yaml_path, cache)
    index = the_index(cache)
    raw = index.read_bytes()
    index.write_bytes(
        {
            "cut": raw[: len(raw) // 2],
            "garbage": b"\x80\x04garbage" * 100,
            "flipped byte": raw[:700] + bytes([raw[700] ^ 255]) + raw[701:],
            "empty": b"",
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert load(yaml_path, cache).fingerprint == before.fingerprint
    assert [r.message for r in caplog.records if "is damaged" in r.message]
    caplog.clear()
    load(yaml_path, cache)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_index_of_another_version_is_rebuilt(tmp_path, cache, monkeypatch):
    yaml_path = make_yolo_set(tmp_path / "set")
    before = load(yaml_path, cache)
    monkeypatch.setattr("hsr_train.data.cache._VERSION", 999)
    assert load(yaml_path, cache).fingerprint == before.fingerprint


def test_interrupted_check_keeps_what_it_has_read(tmp_path, cache, reads, monkeypatch):
    yaml_path = make_yolo_set(tmp_path / "set", n_train=200, size=(16, 16))
    original = files.tqdm.update

    def interrupt(bar, n=1):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(yaml_path, cache)
    monkeypatch.setattr(files.tqdm, "update", original)
    reads.clear()
    assert len(load(yaml_path, cache).splits["train"]) == 200
    assert 0 < len(reads) <= 2 * (202 - 32)


def test_reading_one_split_does_not_forget_the_others(tmp_path, cache, reads):
    yaml_path = make_yolo_set(tmp_path / "set")
    load(yaml_path, cache)
    load(yaml_path, cache, need=("val",), rehash=True)
    reads.clear()
    load(yaml_path, cache)
    assert reads == []


def _load_in_a_process(yaml_path: Path, cache: Path) -> str:
    return load(yaml_path, cache, rehash=True).fingerprint


def test_starts_at_the_same_time_do_not_disturb_each_other(tmp_path, cache, caplog):
    yaml_path = make_yolo_set(tmp_path / "set", n_train=30, size=(16, 16))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fingerprints = pool.starmap(_load_in_a_process, [(yaml_path, cache)] * 6)
    assert len(set(fingerprints)) == 1
    assert load(yaml_path, cache).fingerprint == fingerprints[0]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [path.suffix for path in (cache / "data").iterdir()] == [".index"]


def test_cache_lies_where_the_user_or_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root(DataConfig()) == tmp_path / "home/.cache/hsr_train"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(DataConfig()) == tmp_path / "xdg/hsr_train"
    assert cache_root(DataConfig(cache_dir=str(tmp_path / "typed"))) == tmp_path / "typed"
    monkeypatch.chdir(tmp_path)
    assert cache_root(DataConfig(cache_dir="here")) == tmp_path / "here"
    assert cache_root(DataConfig(cache_dir="~/there")) == tmp_path / "home/there"


def test_unwritable_cache_folder_falls_back_to_a_temporary_one_with_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    blocked = tmp_path / "a file"
    blocked.write_text("")
    yaml_path = make_yolo_set(tmp_path / "set")
    with caplog.at_level(logging.WARNING):
        load(yaml_path, blocked / "cache")
        load(yaml_path, blocked / "cache")
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    assert next(tmp_path.glob("hsr_train-cache-*/data/*.index"))


def test_full_disk_costs_the_index_not_the_run(tmp_path, cache, caplog, monkeypatch):
    yaml_path = make_yolo_set(tmp_path / "set")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hsr_train.data.cache.write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert len(load(yaml_path, cache).splits["train"]) == 4
    assert "No space left on device" in caplog.text
