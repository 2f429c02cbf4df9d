"""Images and labels mean the same to us as to ultralytics, which trains on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from yolo_sets import SHARED, make_yolo_set

from hsr_train.config.schema import DataConfig
from hsr_train.data.images import examine_image
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions

THEIRS = """
import json, sys
from ultralytics.data.utils import img2label_paths, verify_image_label
from ultralytics.utils.patches import imread
rows = {}
for image in json.load(open(sys.argv[1])):
    label = img2label_paths([image])[0]
    _, boxes, shape, segments, *_ = verify_image_label((image, label, "", False, 80, 0, 0, False))
    read = imread(image)
    rows[image] = {
        "decoded": None if read is None else read.shape[:2],
        "shape": shape,
        "boxes": None if boxes is None else boxes.tolist(),
        "segments": None if segments is None else [s.tolist() for s in segments],
    }
json.dump(rows, open(sys.argv[2], "w"))
"""


def ask_ultralytics(images: list[Path], folder: Path) -> dict[str, dict]:
    """Have ultralytics read the images in a process and a settings folder of its own."""
    (folder / "images.json").write_text(json.dumps([str(image) for image in images]))
    subprocess.run(
        [sys.executable, "-c", THEIRS, str(folder / "images.json"), str(folder / "rows.json")],
        check=True,
        env=os.environ | {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"},
    )
    return json.loads((folder / "rows.json").read_text())


def write_rotated_images(folder: Path) -> list[Path]:
    """Write every format that carries an orientation, grey and in colour, turned in four ways."""
    folder.mkdir()
    colour = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    images = []
    for suffix in ("jpg", "png", "webp", "tif", "avif"):
        for turn in (1, 3, 6, 8):
            for mode in ("RGB", "L"):
                exif = Image.Exif()
                exif[274] = turn
                path = folder / f"{turn}_{mode}.{suffix}"
                Image.fromarray(colour).convert(mode).save(path, exif=exif)
                images.append(path)
    return images


def test_shapes_boxes_and_polygons_are_those_of_ultralytics(tmp_path):
    rotated = write_rotated_images(tmp_path / "rotated")
    sets = [make_yolo_set(tmp_path / "boxes"), make_yolo_set(tmp_path / "polygons", polygons=True, seed=1)]
    coco = SHARED / "detect" / "coco8_seg" / "data.yaml"
    sets += [coco] if coco.exists() else []
    splits = [
        split
        for yaml_path in sets
        for split in load_detection_set(
            DataConfig(path=str(yaml_path), cache_dir=str(tmp_path / "cache")), Decisions(), progress=False
        ).splits.values()
    ]
    theirs = ask_ultralytics([*rotated, *(image for split in splits for image in split.images)], tmp_path)
    for image in rotated:
        shape, fault = examine_image(image.read_bytes(), image.suffix[1:])
        assert (list(shape), fault) == (theirs[str(image)]["decoded"], ""), image.name
    for split in splits:
        for i, image in enumerate(split.images):
            row = theirs[str(image)]
            assert split.shapes[i].tolist() == row["shape"]
            np.testing.assert_array_equal(split.labels[i], np.array(row["boxes"], np.float32).reshape(-1, 5))
            assert [points.tolist() for points in split.segments[i]] == row["segments"]
