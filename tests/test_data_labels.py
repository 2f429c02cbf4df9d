"""Label lines: what is read, what is refused and how it is said."""

from __future__ import annotations

import numpy as np
import pytest

from hsr_train.data.labels import LabelRules, parse_labels

RULES = LabelRules(num_classes=3)


def test_boxes_are_read_as_written():
    labels = parse_labels(b"0 0.5 0.5 0.2 0.4\r\n\n  2 0.25\t0.75 0.1 0.1  \n", RULES)
    assert labels.boxes.dtype == np.float32
    np.testing.assert_array_equal(
        labels.boxes, np.array([[0, 0.5, 0.5, 0.2, 0.4], [2, 0.25, 0.75, 0.1, 0.1]], np.float32)
    )
    assert labels.polygons is None
    assert not labels.faults


def test_empty_file_and_byte_order_mark_are_fine():
    assert len(parse_labels(b"", RULES).boxes) == 0
    assert len(parse_labels(b"\xef\xbb\xbf1 0.5 0.5 0.2 0.2", RULES).boxes) == 1


def test_polygon_becomes_its_box_and_is_kept():
    labels = parse_labels(b"1 0.1 0.2 0.5 0.2 0.3 0.8", RULES)
    np.testing.assert_allclose(labels.boxes, [[1, 0.3, 0.5, 0.4, 0.6]], rtol=1e-6)
    assert labels.polygons is not None
    np.testing.assert_allclose(labels.polygons[0], [[0.1, 0.2], [0.5, 0.2], [0.3, 0.8]], rtol=1e-6)


def test_mixed_file_becomes_boxes_only():
    labels = parse_labels(b"1 0.1 0.2 0.5 0.2 0.3 0.8\n0 0.5 0.5 0.2 0.2", RULES)
    assert len(labels.boxes) == 2
    assert labels.polygons is None


def test_repeated_lines_are_dropped_and_counted():
    labels = parse_labels(b"0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n0 0.50 0.5 0.2 0.2\n", RULES)
    assert labels.num_duplicates == 1
    assert labels.boxes[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("line", ["0 1.004 0.5 0.01 0.2", "0 0.98 0.5 0.05 0.2", "0 0.5 0.5 1.01 1.0"])
def test_box_just_outside_is_kept_as_written(line):
    labels = parse_labels(line.encode(), RULES)
    assert not labels.faults
    np.testing.assert_array_equal(labels.boxes[0], np.array(line.split(), np.float32))


@pytest.mark.parametrize(
    ("line", "value", "allowed"),
    [
        ("0 0.5 0.5 0.2", "4 numbers", "class cx cy w h"),
        ("0", "1 number", "class cx cy w h"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 numbers", "class cx cy w h"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1", "8 numbers", "class x1 y1"),
        ("0 0.5 0.5 nan 0.2", "nan", "finite"),
        ("0 inf 0.5 0.2 0.2", "inf", "finite"),
        ("nan 0.5 0.5 0.2 0.2", "nan", "finite"),
        ("0 0.1 0.1 nan 0.1 0.5 0.5", "nan", "finite"),
        ("0 0,5 0.5 0.2 0.2", "0,5", "not a number"),
        ("cup 0.5 0.5 0.2 0.2", "cup", "not a number"),
        ("3 0.5 0.5 0.2 0.2", "class 3", "0 to 2"),
        ("-1 0.5 0.5 0.2 0.2", "class -1", "0 to 2"),
        ("1.5 0.5 0.5 0.2 0.2", "class 1.5", "whole numbers"),
        ("0 320 240 50 60", "coordinate 320", "0 to 1"),
        ("0 1.2 0.5 0.1 0.1", "coordinate 1.2", "inside the image"),
        ("0 0.5 -0.2 0.1 0.1", "coordinate -0.2", "inside the image"),
        ("0 0.9 0.5 0.4 0.2", "box from (0.700, 0.400) to (1.100, 0.600)", "inside the image"),
        ("0 0.5 0.5 0 0.2", "width 0, height 0.2", "above 0"),
        ("0 0.5 0.5 0.2 -0.1", "width 0.2, height -0.1", "above 0"),
        ("0 0.1 0.1 0.1 0.5 0.1 0.9", "a polygon without area", "width and a height above 0"),
        ("0 0.1 0.1 0.5 0.1 0.5 1.5", "coordinate 1.5", "inside the image"),
    ],
)
def test_bad_line_is_refused_with_its_number_and_reason(line, value, allowed):
    labels = parse_labels(f"0 0.5 0.5 0.1 0.1\n{line}\n1 0.2 0.2 0.1 0.1\n".encode(), RULES)
    assert [fault.line for fault in labels.faults] == [2]
    assert labels.faults[0].value == value
    assert allowed in labels.faults[0].allowed
    assert labels.boxes[:, 0].tolist() == [0, 1]


def test_every_bad_line_is_reported():
    labels = parse_labels(b"9 0.5 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n0 0.5\n", RULES)
    assert [fault.line for fault in labels.faults] == [1, 2, 3]


def test_text_that_is_not_utf8_is_one_fault():
    labels = parse_labels(b"0 0.5 0.5 0.1 0.1\n\xff\xfe", RULES)
    assert [(f.line, f.value) for f in labels.faults] == [(2, "byte 0xff")]


def test_keypoints_are_left_out_where_the_set_has_some():
    line = b"0 0.5 0.5 0.2 0.2" + b" 0.5 0.5 2" * 3
    assert parse_labels(line, LabelRules(3)).faults
    labels = parse_labels(line, LabelRules(3, pose_columns=5 + 3 * 3))
    assert not labels.faults
    assert labels.boxes.shape == (1, 5)
