"""What an evaluation leaves behind: figures that agree with scikit-learn, and pictures that show what they say."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hsr_train.engines.classification.calibration import calibrate
from hsr_train.engines.classification.pictures import (
    matrix_picture,
    mistakes_sheet,
    prediction_sheet,
    reliability_picture,
)
from hsr_train.engines.classification.reports import (
    Evaluation,
    confusion_picture,
    load_metrics,
    write_picture,
    write_predictions,
    write_reports,
)
from hsr_train.errors import InputError, RunError

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(8):
        found.append(folder / f"{number}.png")
        cv2.imwrite(str(found[-1]), np.full((40, 60 - 3 * number, 3), 20 * number, np.uint8))
    return found


def evaluation(
    files: list[Path], targets: list[int], answers: list[int], sure: float = 0.8, classes: list[str] = CLASSES
) -> Evaluation:
    """Each answer with a probability of its own, the first the surest; the rest is spread evenly."""
    count = len(classes)
    probabilities = np.empty((len(targets), count))
    for row, answer in enumerate(answers):
        share = sure - 0.01 * row
        probabilities[row] = (1 - share) / (count - 1)
        probabilities[row, answer] = share
    return Evaluation("val", classes, np.array(targets), probabilities, files[: len(targets)], 0.5)


@pytest.fixture
def typical(files: list[Path]) -> Evaluation:
    """Right: both ants, one bee of three, two cats of three."""
    return evaluation(files, [0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 2, 0, 2, 2, 0])


# ---- figures


def test_figures_are_those_of_scikit_learn(typical: Evaluation) -> None:
    metrics = load_metrics()
    assert typical.accuracy == pytest.approx(5 / 8)
    assert typical.macro_f1 == pytest.approx(metrics.f1_score(typical.targets, typical.predicted, average="macro"))
    assert typical.confusion.tolist() == [[2, 0, 0], [1, 1, 1], [1, 0, 2]]
    assert typical.confusion.dtype == np.int64
    assert typical.per_class[1] == {
        "class": "bee",
        "precision": 1.0,
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(0.5),
        "support": 3,
    }


def test_text_is_scikit_learns_table_with_four_digits(typical: Evaluation) -> None:
    lines = typical.report_text().splitlines()
    assert lines[0].split() == ["precision", "recall", "f1-score", "support"]
    assert lines[3].split() == ["bee", "1.0000", "0.3333", "0.5000", "3"]
    assert next(line for line in lines if "accuracy" in line).split() == ["accuracy", "0.6250", "8"]
    assert any("macro avg" in line for line in lines) and any("weighted avg" in line for line in lines)


def test_json_has_the_same_figures(typical: Evaluation) -> None:
    metrics = load_metrics()
    report = json.loads(json.dumps(typical.report_json()))
    wanted = metrics.classification_report(typical.targets, typical.predicted, output_dict=True)
    assert report["macro_average"]["recall"] == pytest.approx(wanted["macro avg"]["recall"])
    assert report["weighted_average"]["f1"] == pytest.approx(wanted["weighted avg"]["f1-score"])
    assert report["macro_f1"] == report["macro_average"]["f1"]
    assert (report["split"], report["images"], report["loss"]) == ("val", 8, 0.5)
    assert report["confusion"] == typical.confusion.tolist() and report["classes"] == CLASSES


def test_class_that_is_never_predicted_has_zeros_without_a_warning(files: list[Path]) -> None:
    never = evaluation(files, [0, 1, 2], [0, 1, 1])
    with warnings.catch_warnings(action="error"):
        assert never.report_text()
    assert never.per_class[2] == {"class": "cat", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_class_without_images_and_answers_takes_no_part_and_is_named(files: list[Path]) -> None:
    without = evaluation(files, [0, 0, 2], [0, 2, 2])
    assert [row["class"] for row in without.per_class] == ["ant", "cat"]
    assert without.macro_f1 == pytest.approx(
        load_metrics().f1_score(without.targets, without.predicted, average="macro")
    )
    assert "Neither here nor predicted: bee" in without.report_text()
    assert without.report_json()["absent"] == ["bee"]
    assert without.confusion.shape == (3, 3)


def test_evaluation_whose_parts_do_not_fit_is_a_defect(files: list[Path]) -> None:
    with pytest.raises(ValueError, match="as many"):
        Evaluation("val", CLASSES, np.array([0]), np.ones((2, 3)) / 3, files[:2])
    with pytest.raises(ValueError, match="at least one"):
        Evaluation("val", CLASSES, np.array([], np.int64), np.ones((0, 3)), [])
    with pytest.raises(ValueError, match="2 probabilities for 3 classes"):
        Evaluation("val", CLASSES, np.array([0]), np.ones((1, 2)) / 2, files[:1])


def test_missing_library_is_said_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'scikit-learn is not installed\n.*pip install "hsr_train\[classify\]"'):
        load_metrics()


# ---- calibration


def test_calibration_error_is_guos_by_hand() -> None:
    """Two images at 0.95, one right; two at 0.55, both right: 2/4 * 0.45 + 2/4 * 0.45."""
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.45, 0.55]])
    found = calibrate(np.array([0, 1, 0, 1]), probabilities)
    assert found.error == pytest.approx(0.45)
    assert [(row["images"], row["accuracy"]) for row in found.rows()] == [(2, 1.0), (2, 0.5)]
    assert found.rows()[0]["from"] == pytest.approx(8 / 15) and found.rows()[1]["confidence"] == pytest.approx(0.95)


@pytest.mark.parametrize("sure", [1 / 15 * 5, 0.6, 0.8, 1.0])
def test_probability_on_an_edge_belongs_to_the_bin_that_ends_there(sure: float) -> None:
    (row,) = calibrate(np.array([0]), np.array([[sure, *[(1 - sure) / 4] * 4]])).rows()
    assert row["to"] == pytest.approx(sure)


def test_honest_probabilities_have_no_error_and_a_sure_and_wrong_network_has_one() -> None:
    honest = np.array([[0.75, 0.25]] * 4)
    assert calibrate(np.array([0, 0, 0, 1]), honest).error == pytest.approx(0)
    assert calibrate(np.array([1, 1]), np.array([[1.0, 0.0]] * 2)).error == 1
    with warnings.catch_warnings(action="error"):
        assert reliability_picture(calibrate(np.array([1]), np.array([[1.0, 0.0]])), "100 % $of$ it").ndim == 3


def test_reports_say_how_far_probabilities_are_off(typical: Evaluation) -> None:
    error = calibrate(typical.targets, typical.probabilities).error
    assert f"Expected calibration error (15 bins): {error:.4f}" in typical.report_text()
    report = json.loads(json.dumps(typical.report_json()))
    assert report["expected_calibration_error"] == pytest.approx(error)
    assert sum(row["images"] for row in report["calibration"]) == 8


# ---- mistakes


def test_mistakes_come_worst_first_and_name_both_classes(typical: Evaluation, files: list[Path]) -> None:
    found = typical.mistakes()
    assert [(m.image, m.truth, m.answer) for m in found] == [
        (files[3], "bee", "cat"),
        (files[4], "bee", "ant"),
        (files[7], "cat", "ant"),
    ]
    assert found[0].probability == pytest.approx(0.77) and found[0].of_truth == pytest.approx(0.115)
    assert len(typical.mistakes(2)) == 2


# ---- files


def test_reports_are_written_under_their_names(typical: Evaluation, tmp_path: Path) -> None:
    write_reports(typical, tmp_path / "logs", tmp_path / "plots")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "logs/classification_report_val.txt",
        "logs/classification_report_val.json",
        "plots/confusion_val.png",
        "plots/reliability_val.png",
        "plots/worst_val.jpg",
    }
    assert (tmp_path / "logs" / "classification_report_val.txt").read_text() == typical.report_text()
    stored = cv2.imread(str(tmp_path / "plots" / "confusion_val.png"))
    assert (stored[..., ::-1] == confusion_picture(typical)).all()


def test_network_without_a_mistake_has_no_sheet_of_them(files: list[Path], tmp_path: Path) -> None:
    write_reports(evaluation(files, [0, 1], [0, 1]), tmp_path, tmp_path)
    assert not (tmp_path / "worst_val.jpg").exists()


def test_reports_that_the_disk_refuses_stop_the_run(typical: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot write"):
        write_reports(typical, tmp_path / "logs", tmp_path / "plots")


def test_predictions_are_a_table_with_a_column_for_each_class(tmp_path: Path) -> None:
    probabilities = np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])
    classes = ["ant", "bee, wild", "cat"]
    write_predictions(tmp_path / "p.csv", ["a/1.jpg", Path("b.jpg")], probabilities, classes, top=2)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "file": "a/1.jpg",
        "predicted": "bee, wild",
        "top": "bee, wild; ant",
        "p_ant": "0.200000",
        "p_bee, wild": "0.700000",
        "p_cat": "0.100000",
    }
    assert (second["predicted"], second["top"]) == ("ant", "ant; cat")


def test_table_of_predictions_names_no_more_classes_than_there_are(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", ["a"], np.array([[0.6, 0.4]]), ["x", "y"], top=5)
    assert (tmp_path / "p.csv").read_text() == "file,predicted,top,p_x,p_y\na,x,x; y,0.600000,0.400000\n"


# ---- pictures


@pytest.mark.parametrize("count", [2, 9, 43, 130])
def test_confusion_picture_is_an_rgb_image_of_a_sensible_size(count: int) -> None:
    picture = matrix_picture(np.eye(count, dtype=np.int64), [f"class number {i}" for i in range(count)], "val")
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert 300 < picture.shape[0] < 2600 and 300 < picture.shape[1] < 2600


def test_confusion_picture_shows_shares_by_row() -> None:
    """The true class is the row: dark where all images of a row lie, light elsewhere."""
    one, other = (matrix_picture(np.array(m), ["a", "b"]).astype(int) for m in ([[0, 9], [0, 9]], [[9, 0], [9, 0]]))
    across = (one - other).mean(axis=(0, 2))
    assert across[: len(across) // 2].sum() > 500 > -500 > across[len(across) // 2 :].sum()


@pytest.mark.parametrize("name", ["a$b$c", "très_long_" * 9, "犬", "x^{2}", ""])
def test_class_names_of_any_kind_are_drawn_as_they_are(name: str, files: list[Path]) -> None:
    assert matrix_picture(np.eye(2, dtype=np.int64), [name, "b"], name).size
    assert mistakes_sheet(evaluation(files, [0], [1], classes=[name, "b"]).mistakes()).size


def test_matplotlibs_global_figures_are_left_alone(typical: Evaluation) -> None:
    confusion_picture(typical)
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_sheet_has_a_place_for_each_picture(files: list[Path]) -> None:
    probabilities = np.full((8, 2), 0.5)
    few, many = (prediction_sheet(files[:n], probabilities[:n], ["a", "b"]) for n in (2, 8))
    assert few.shape[1] < many.shape[1] and few.shape[0] * 1.5 < many.shape[0]
    assert prediction_sheet(files, probabilities, ["a", "b"], most=2).shape == few.shape


def test_sheet_shows_pictures_in_their_colours(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((50, 50, 3), (0, 0, 240), np.uint8))
    sheet = prediction_sheet([tmp_path / "red.png"], np.array([[0.9, 0.1]]), ["a", "b"])
    assert sheet[100, 100].tolist() == [240, 0, 0]
    write_picture(tmp_path / "sheet.png", sheet)
    assert cv2.imread(str(tmp_path / "sheet.png"))[100, 100].tolist() == [0, 0, 240]


def test_picture_that_is_gone_leaves_its_place_grey_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sheet = prediction_sheet([tmp_path / "gone.jpg"], np.array([[0.9, 0.1]]), ["a", "b"])
    assert sheet[100, 100].tolist() == [225, 225, 225]
    assert "gone.jpg" in caplog.text
