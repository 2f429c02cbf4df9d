"""mode=predict: pictures, folders and videos in; annotated pictures, YOLO labels and a table out."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lively_weights import write_lively_checkpoint
from PIL import Image
from yolo_sets import SHARED, write_picture

from hsr_train.config.schema import PredictConfig
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.predict import Prediction, predict
from hsr_train.errors import InputError, RunError

bring_up()
from ultralytics import YOLO  # noqa: E402

IMGSZ = 96


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lively_checkpoint(tmp_path_factory.mktemp("weights") / "best.pt", names=("mug", "皿"), imgsz=IMGSZ)


def run(weights: Path, source: Path, output: Path, options: dict[str, Any] | None = None, **config: Any) -> Prediction:
    return predict(
        weights,
        source,
        config=PredictConfig(**{"conf": 0.05, **config}),
        imgsz=IMGSZ,
        device="cpu",
        output_dir=output,
        options=options,
    )


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def table(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_video(path: Path, num_frames: int, size: tuple[int, int] = (72, 96), per_second: float = 12.5) -> Path:
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), per_second, size[::-1])
    for seed in range(num_frames):
        writer.write(cv2.imread(str(write_picture(path.parent / "frame.png", size=size, seed=seed))))
    writer.release()
    (path.parent / "frame.png").unlink()
    return path


def test_predict_one_image_finds_what_plain_ultralytics_finds(weights: Path, tmp_path: Path) -> None:
    image = write_picture(tmp_path / "in" / "desk.png", size=(60, 100))
    found = run(weights, image, tmp_path / "out", conf=0.02, iou=0.5, max_det=7)
    assert files_below(tmp_path / "out") == ["annotated/desk.png", "labels/desk.txt", "predictions.csv"]
    assert files_below(tmp_path / "in") == ["desk.png"] and files_below(weights.parent) == ["best.pt"]
    expected = YOLO(weights).predict(image, imgsz=IMGSZ, conf=0.02, iou=0.5, max_det=7, verbose=False, save=False)[0]
    assert found.images == 1 and found.boxes == len(expected.boxes) == 7
    rows = table(tmp_path / "out")
    corners = np.array([[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in rows])
    np.testing.assert_allclose(corners, expected.boxes.xyxy.numpy(), atol=0.006)
    np.testing.assert_allclose([float(r["score"]) for r in rows], expected.boxes.conf.numpy(), atol=1e-6)
    assert [int(row["class_id"]) for row in rows] == expected.boxes.cls.int().tolist()
    assert {(row["class_id"], row["class"]) for row in rows} <= {("0", "mug"), ("1", "皿")}
    assert {row["file"] for row in rows} == {"desk.png"} and {row["frame"] for row in rows} == {""}
    lines = np.loadtxt(tmp_path / "out/labels/desk.txt", ndmin=2)
    np.testing.assert_allclose(lines[:, 1:5], expected.boxes.xywhn.numpy(), atol=1e-6)
    np.testing.assert_allclose(lines[:, 5], expected.boxes.conf.numpy(), atol=1e-6)
    assert sum(found.boxes_per_class.values()) == 7
    assert {"read", "preprocess", "inference", "postprocess", "write"} == set(found.speed_ms)
    drawn, before = (cv2.imread(str(path)) for path in (tmp_path / "out/annotated/desk.png", image))
    assert drawn.shape == before.shape and (drawn != before).any()


def test_predict_folder_keeps_sub_folders_and_odd_names(weights: Path, tmp_path: Path) -> None:
    names = ["a b*[1]?.jpg", "sub ,(é)/日本.png", "sub ,(é)/deep/x.JPG", "-rf.bmp", "q'\"#%.webp"]
    for seed, name in enumerate(names):
        write_picture(tmp_path / "in" / name, seed=seed)
    found = run(weights, tmp_path / "in", tmp_path / "out")
    assert found.images == 5 and not found.unreadable and not found.skipped
    labels = [str(Path(name).with_suffix(".txt")) for name in names]
    expected = [f"annotated/{name}" for name in names] + [f"labels/{name}" for name in labels] + ["predictions.csv"]
    assert files_below(tmp_path / "out") == sorted(expected)
    assert {row["file"] for row in table(tmp_path / "out")} <= set(names)


def test_predict_name_that_is_not_utf8(weights: Path, tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "x.png")
    (tmp_path / "in").mkdir()
    odd = tmp_path / "in" / os.fsdecode(b"caf\xe9.png")
    picture.rename(odd)
    found = run(weights, tmp_path / "in", tmp_path / "out")
    assert found.images == 1 and (tmp_path / "out/annotated" / odd.name).is_file()
    assert {row["file"] for row in table(tmp_path / "out")} == {"caf\\udce9.png"}


def test_predict_files_of_one_stem_do_not_share_results(weights: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "a.png", "b.avif", "b.jpg", "c.avif", "c.avif.jpg")):
        path = write_picture(tmp_path / "in" / name.replace(".avif", ".png"), seed=seed)
        if name.endswith(".avif"):
            Image.open(path).save(tmp_path / "in" / name)
            path.unlink()
        elif path.name != name:
            path.rename(tmp_path / "in" / name)
    found = run(weights, tmp_path / "in", tmp_path / "out")
    assert found.images == 6
    assert len(files_below(tmp_path / "out/annotated")) == len(files_below(tmp_path / "out/labels")) == 6
    assert files_below(tmp_path / "out/labels")[:2] == ["a.jpg.txt", "a.png.txt"]


def test_predict_leaves_out_what_it_cannot_read_and_says_so(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    good = write_picture(folder / "good.jpg", size=(200, 200))
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:-500])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "clip.mp4").write_text("no video")
    (folder / "notes.txt").write_text("x")
    (folder / "Makefile").write_text("x")
    (folder / "._good.jpg").write_text("x")
    write_picture(folder / ".hidden" / "h.jpg")
    (folder / "loop").symlink_to(folder)
    with caplog.at_level(logging.WARNING):
        found = run(weights, folder, tmp_path / "out")
    assert found.images == 1 and found.videos == 0
    assert [line.split(":")[0] for line in found.unreadable] == [
        "clip.mp4", "cut.jpg", "empty.png", "gone.jpg", "text.jpg",
    ]  # fmt: skip
    assert "cut.jpg: is cut off" in found.unreadable[1] and "empty" in found.unreadable[2]
    assert found.skipped == {
        ".txt": 1, "hidden": 1, "hidden folders": 1, "linked folders": 1, "without an ending": 1,
    }  # fmt: skip
    assert "Left out: cut.jpg" in caplog.text and "5 of 6 files could not be read" in caplog.text
    assert files_below(tmp_path / "out") == ["annotated/good.jpg", "labels/good.txt", "predictions.csv"]


def test_predict_image_without_boxes_gets_an_empty_label(weights: Path, tmp_path: Path) -> None:
    image = write_picture(tmp_path / "in" / "a.jpg")
    found = run(weights, image, tmp_path / "out", conf=1.0)
    assert found.boxes == 0 and found.boxes_per_class == {}
    assert (tmp_path / "out/labels/a.txt").read_bytes() == b"" and table(tmp_path / "out") == []
    assert (tmp_path / "out/annotated/a.jpg").is_file()


def test_predict_turns_pictures_as_training_does(weights: Path, tmp_path: Path) -> None:
    upright = Image.open(write_picture(tmp_path / "upright.png", size=(100, 60)))
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.rotate(90, expand=True).save(tmp_path / "in" / "turned.png", exif=exif)
    run(weights, tmp_path / "in", tmp_path / "out")
    rows = [{k: v for k, v in row.items() if k != "file"} for row in table(tmp_path / "out")]
    assert rows and rows[: len(rows) // 2] == rows[len(rows) // 2 :]
    assert cv2.imread(str(tmp_path / "out/annotated/turned.png")).shape == (100, 60, 3)


def test_predict_grey_and_16_bit_pictures(weights: Path, tmp_path: Path) -> None:
    grey = cv2.imread(str(write_picture(tmp_path / "x.png")), cv2.IMREAD_GRAYSCALE)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "in" / "deep.tif"), np.uint16(grey) << 8)
    assert run(weights, tmp_path / "in", tmp_path / "out").images == 2


def test_predict_video_frame_by_frame(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in é").mkdir()
    video = write_video(tmp_path / "in é" / "clip 1.avi", 5)
    found = run(weights, video, tmp_path / "out")
    assert (found.images, found.videos, found.frames) == (0, 1, 5)
    assert files_below(tmp_path / "out/labels") == [f"clip 1.avi/{i:06d}.txt" for i in range(1, 6)]
    annotated = cv2.VideoCapture(str(tmp_path / "out/annotated/clip 1.mp4"))
    assert annotated.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and annotated.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    assert annotated.read()[1].shape == (72, 96, 3)
    rows = table(tmp_path / "out")
    assert {row["frame"] for row in rows} == {"1", "2", "3", "4", "5"} and {r["file"] for r in rows} == {video.name}
    assert len(rows) == found.boxes == sum(found.boxes_per_class.values())
    for number in range(1, 6):
        lines = (tmp_path / f"out/labels/clip 1.avi/{number:06d}.txt").read_text().splitlines()
        assert len(lines) == sum(row["frame"] == str(number) for row in rows)


def test_predict_cut_off_video_keeps_what_can_be_read(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = write_video(tmp_path / "cut.avi", 12)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        found = run(weights, tmp_path / "cut.avi", tmp_path / "out")
    assert 0 < found.frames < 12
    assert f"cut.avi: {found.frames} of the 12 frames that it should have could be read" in caplog.text


def test_predict_own_output_within_the_folder_is_no_source(weights: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    first = run(weights, tmp_path, tmp_path / "results" / "p")
    again = run(weights, tmp_path, tmp_path / "results" / "p")
    assert first.images == again.images == 1


def test_predict_nms_free_head_when_asked_for(tmp_path: Path) -> None:
    file = write_lively_checkpoint(tmp_path / "w.pt", "yolo26n", imgsz=IMGSZ)
    image = write_picture(tmp_path / "in" / "a.png", size=(96, 96))
    run(file, image, tmp_path / "out", options={"nms": False, "box": 7.5}, conf=0.05, max_det=50)
    expected = YOLO(file).predict(image, imgsz=IMGSZ, conf=0.05, max_det=50, nms=False, verbose=False, save=False)[0]
    scores = [float(row["score"]) for row in table(tmp_path / "out")]
    np.testing.assert_allclose(scores, expected.boxes.conf.numpy(), atol=1e-6)


def test_predict_refuses_what_holds_no_picture(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (tmp_path / "broken.jpg").write_text("x")
    cases = {
        tmp_path / "missing": "does not exist",
        tmp_path / "empty": r"is a folder without images or videos \(empty\)",
        tmp_path / "text": r"is a folder without images or videos \(1 \.txt\)",
        tmp_path / "text" / "a.txt": "is not an image .*, a video .* or a folder",
        tmp_path / "broken.jpg": "none of 1 files can be read: broken.jpg: cannot be decoded",
    }
    for source, reason in cases.items():
        with pytest.raises(InputError, match=f"data.path: .*{source.name}: {reason}"):
            run(weights, source, tmp_path / "out")


def test_predict_refuses_damaged_weights(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("x")
    with pytest.raises(InputError, match="model.weights"):
        run(tmp_path / "w.pt", write_picture(tmp_path / "a.jpg"), tmp_path / "out")


def test_predict_disk_that_refuses_is_one_line(weights: Path, tmp_path: Path) -> None:
    image = write_picture(tmp_path / "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels").write_text("a file in the way")
    with pytest.raises(RunError, match="cannot write .*out"):
        run(weights, image, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "weights/yolov8n.pt").is_file(), reason="needs pretrained weights")
def test_predict_pretrained_weights_on_photographs(tmp_path: Path) -> None:
    found = predict(
        SHARED / "weights/yolov8n.pt",
        SHARED / "detect/coco8_seg/images",
        config=PredictConfig(),
        imgsz=640,
        device="cpu",
        output_dir=tmp_path,
    )
    assert found.images == 8 and found.boxes_per_class["person"] >= 1
    assert files_below(tmp_path / "labels")[0] == "train/000000000009.txt"
