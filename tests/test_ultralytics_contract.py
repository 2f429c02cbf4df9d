"""What the detection embassy takes for granted about ultralytics beyond its documented interface.

Each check names the file of ours that relies on it: after an update of the library, a failure here says where to look.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hsr_train.config import architectures
from hsr_train.config.schema import OPTIMIZERS, AugmentationConfig, DetectExperiment, UltralyticsConfig
from hsr_train.engines.detection import weights
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.options import training_arguments

bring_up()
import ultralytics  # noqa: E402
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, parse_model, yaml_model_load  # noqa: E402

CONF = Path(__file__).resolve().parents[1] / "conf"
DEFAULTS = Path(ultralytics.__file__).parent / "cfg" / "default.yaml"


def find(dotted: str) -> Any:
    """Return `package.module:Class.attribute`."""
    module, _, path = dotted.partition(":")
    found = importlib.import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


def source(dotted: str) -> str:
    return inspect.getsource(find(dotted))


# ---- names and parameters

TRAINER = "ultralytics.engine.trainer:BaseTrainer"
DETECT = "ultralytics.models.yolo.detect"
BASE = "ultralytics.data.base:BaseDataset"
TORCH = "ultralytics.utils.torch_utils"
# Our file, the name, and the parameters that we pass or that an override of ours receives.
NAMES = [
    ("trainer.py", f"{TRAINER}._setup_train", ""),
    ("trainer.py", f"{TRAINER}.__init__", "overrides"),
    ("trainer.py", f"{TRAINER}.get_dataset", ""),
    ("trainer.py", f"{TRAINER}.setup_model", ""),
    ("trainer.py", f"{DETECT}:DetectionTrainer.get_model", "cfg weights verbose"),
    ("trainer.py", f"{DETECT}:DetectionTrainer.build_dataset", "img_path mode batch"),
    ("trainer.py", f"{DETECT}:DetectionTrainer.get_dataloader", "dataset_path batch_size rank mode"),
    ("trainer.py", "ultralytics.engine.trainer:check_amp", ""),
    ("trainer.py", "ultralytics.models.yolo.detect.train:plot_images", ""),
    ("trainer.py", "ultralytics.models.yolo.detect.val:plot_images", ""),
    ("loop.py", f"{TRAINER}._model_train", ""),
    ("loop.py", f"{TRAINER}.optimizer_step", ""),
    ("loop.py", f"{TRAINER}._get_memory", ""),
    ("loop.py", f"{DETECT}:DetectionTrainer.preprocess_batch", "batch"),
    ("loop.py", f"{DETECT}:DetectionTrainer.plot_training_samples", "batch ni"),
    ("loop.py", f"{TORCH}:ModelEMA.update_attr", "model include"),
    ("loop.py", f"{TORCH}:EarlyStopping.__call__", "epoch fitness"),
    ("loop.py", f"{TORCH}:autocast", "enabled device"),
    ("loop.py", f"{TORCH}:unwrap_model", "m"),
    ("checkpoint.py", f"{TORCH}:ModelEMA.update", "model"),
    ("checkpoint.py", "ultralytics.nn.tasks:DetectionModel.init_criterion", ""),
    ("checkpoint.py", "ultralytics.utils:DEFAULT_CFG_KEYS", None),
    ("dataset.py", "ultralytics.data.base:TQDM", None),
    ("dataset.py", "ultralytics.data.dataset:YOLODataset.__init__", "data task"),
    ("dataset.py", f"{BASE}.__init__", "img_path imgsz cache augment hyp prefix rect batch_size stride pad single_cls"),
    ("dataset.py", f"{BASE}.get_img_files", "img_path"),
    ("dataset.py", f"{BASE}.get_labels", ""),
    ("dataset.py", f"{BASE}.check_cache_ram", "safety_margin"),
    ("dataset.py", f"{BASE}.check_cache_disk", "safety_margin"),
    ("dataset.py", f"{BASE}.cache_images", ""),
    ("dataset.py", f"{BASE}.cache_images_to_disk", "i"),
    ("dataset.py", "ultralytics.data.dataset:YOLODataset.build_transforms", "hyp"),
    ("dataset.py", "ultralytics.data.dataset:YOLODataset.collate_fn", "batch"),
    ("dataset.py", "ultralytics.data.augment:Mosaic.get_indexes", ""),
    ("dataset.py", "ultralytics.data.augment:Albumentations", None),
    ("dataset.py", "ultralytics.data.augment:Compose", None),
    ("dataset.py", "ultralytics.data.build:InfiniteDataLoader.close", ""),
    ("dataset.py", "ultralytics.utils.patches:imread", "filename flags"),
    ("evaluate.py", "ultralytics.engine.validator:check_det_dataset", ""),
    ("evaluate.py", f"{DETECT}:DetectionValidator.__init__", "save_dir args"),
    ("evaluate.py", f"{DETECT}:DetectionValidator.__call__", "trainer model"),
    ("evaluate.py", f"{DETECT}:DetectionValidator.init_metrics", "model"),
    ("evaluate.py", f"{DETECT}:DetectionValidator.update_metrics", "preds batch"),
    ("evaluate.py", f"{DETECT}:DetectionValidator._prepare_batch", "si batch"),
    ("evaluate.py", "ultralytics.utils.ops:scale_boxes", "img1_shape boxes img0_shape ratio_pad"),
    ("library.py", "ultralytics.utils:USER_CONFIG_DIR", None),
    ("library.py", "ultralytics.utils:LOGGER", None),
    ("library.py", "ultralytics.utils.callbacks:add_integration_callbacks", "instance"),
    ("library.py", "ultralytics.utils.downloads:attempt_download_asset", "file"),
    ("library.py", "ultralytics.utils.downloads:safe_download", "url"),
    ("weights.py", "ultralytics.nn.tasks:torch_safe_load", "weight safe_only"),
    ("weights.py", "ultralytics.nn.tasks:guess_model_scale", "model_path"),
    ("weights.py", "ultralytics.nn.tasks:parse_model", "d ch verbose"),
    ("weights.py", "ultralytics.utils:ROOT", None),
    ("weights.py", "ultralytics.utils:YAML.load", "file"),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "name", "parameters"), NAMES, ids=[f"{f}:{n}" for f, n, _ in NAMES])
def test_name_is_there_and_takes_what_we_pass(ours: str, name: str, parameters: str | None) -> None:
    try:
        found = find(name)
    except AttributeError:
        pytest.fail(f"ultralytics has no {name} any more; {ours} relies on it")
    if parameters:
        accepted = inspect.signature(found).parameters
        missing = set(parameters.split()) - set(accepted)
        assert not missing, f"{name} takes no {missing} any more; {ours} relies on it"


def test_every_private_name_that_is_used_is_listed_here() -> None:
    """`object._name` in the embassy, but for its own names and those of the standard library."""
    ours = Path(weights.__file__).parent
    listed = {name.rpartition(".")[2].rpartition(":")[2] for _, name, _ in NAMES}
    found = set()
    for file in ours.glob("*.py"):
        text = file.read_text()
        own = set(re.findall(r"(?:def |self\.|class |^|\n)(_[a-z]\w*)", text))
        found |= {(file.name, name) for name in re.findall(r"(?<!\bos)\.(_[a-z]\w+)", text) if name not in own}
    unlisted = {(file, name) for file, name in found if name not in listed}
    assert not unlisted, "add these to NAMES"


# Parts that our own code replaces or repeats: if one changes, compare it with ours and then renew its digest.
REPEATED = {
    f"{TRAINER}._do_train": ("loop.py and schedule.py", "87a635e3bfc4"),
    f"{TRAINER}._setup_train": ("trainer.py", "aecd0c111afe"),
    f"{TRAINER}._build_train_pipeline": ("trainer.py and schedule.py", "07afcc0627f2"),
    f"{TRAINER}._get_warmup_iterations": ("schedule.py", "2b8d4260941e"),
    f"{TRAINER}._setup_scheduler": ("schedule.py", "2102ad770f8e"),
    f"{TRAINER}.optimizer_step": ("loop.py", "bec16cbc552a"),
    f"{TRAINER}.save_model": ("checkpoint.py", "47f61ede98e6"),
    f"{TRAINER}._load_checkpoint_state": ("checkpoint.py", "1c4472505c34"),
    f"{TRAINER}.resume_training": ("checkpoint.py", "a43cef5955c0"),
    f"{TRAINER}.get_dataset": ("trainer.py", "611e9c8ae89f"),
    f"{TRAINER}.setup_model": ("trainer.py", "33c98eece052"),
    f"{DETECT}:DetectionTrainer.get_dataloader": ("trainer.py", "981b10cf054f"),
    f"{DETECT}:DetectionTrainer.build_dataset": ("trainer.py", "2d004adb8adc"),
    f"{BASE}.__init__": ("dataset.py", "458ff66ff8fb"),
    f"{BASE}.load_image": ("dataset.py", "088d1a203d12"),
    f"{BASE}.cache_images_to_disk": ("dataset.py", "feaa3d08ceb4"),
    "ultralytics.data.build:build_yolo_dataset": ("dataset.py", "a17c3d3a3acb"),
    "ultralytics.data.dataset:YOLODataset.close_mosaic": ("dataset.py", "62c6ff1f2c2b"),
    "ultralytics.data.augment:Mosaic.get_indexes": ("dataset.py", "1152aa5dfa59"),
    "ultralytics.nn.tasks:yaml_model_load": ("weights.py", "bb688ef9d355"),
}


@pytest.mark.parametrize("name", REPEATED)
def test_part_that_we_repeat_is_unchanged(name: str) -> None:
    ours, expected = REPEATED[name]
    digest = hashlib.sha256(source(name).encode()).hexdigest()[:12]
    assert digest == expected, f"ultralytics changed {name}: compare it with {ours}, then renew the digest here"


def test_attributes_that_we_read_or_set_are_set_by_the_trainer() -> None:
    text = source(TRAINER)
    attributes = [
        "amp",
        "args",
        "batch_size",
        "best",
        "best_fitness",
        "csv",
        "device",
        "ema",
        "epoch",
        "epochs",
        "fitness",
        "last",
        "loss",
        "loss_items",
        "loss_names",
        "model",
        "optimizer",
        "save_dir",
        "scaler",
        "start_epoch",
        "stopper",
        "stride",
        "test_loader",
        "train_loader",
        "validator",
        "wdir",
    ]
    missing = [name for name in attributes if not re.search(rf"self\.{name}\b(?:, self\.\w+)* *(?::[^=]*)?=", text)]
    assert not missing, f"trainer.py, loop.py and checkpoint.py use {missing}"


def test_early_stopping_has_the_fields_that_are_saved() -> None:
    stopper = find(f"{TORCH}:EarlyStopping")(patience=3)
    assert vars(stopper) == {"best_fitness": 0.0, "best_epoch": 0, "patience": 3, "possible_stop": False}, (
        "checkpoint.py"
    )
    assert find(f"{TORCH}:EarlyStopping")(patience=0).patience == float("inf"), "loop.py: patience 0 never stops"


def test_ema_has_the_fields_that_are_saved() -> None:
    ema = find(f"{TORCH}:ModelEMA")(torch.nn.Linear(1, 1))
    assert set(vars(ema)) == {"ema", "updates", "decay", "enabled", "_pairs"}, "checkpoint.py saves ema and updates"


def test_loss_with_a_schedule_counts_updates() -> None:
    for name in ("update", "updates"):
        assert name in source("ultralytics.utils.loss:E2ELoss"), f"checkpoint.py restores E2ELoss.{name}"


def test_state_of_a_loss_is_only_its_count_of_updates() -> None:
    """What else a criterion remembered from step to step would be lost on resume."""
    assert not hasattr(find("ultralytics.utils.loss:v8DetectionLoss"), "update"), "checkpoint.py, loop.py"


@pytest.mark.parametrize("architecture", ["yolov8n", "yolo26n"])
def test_loss_is_divided_by_the_scores_that_its_assigner_found(architecture: str) -> None:
    """`sharing.py` puts another sum in its place, at every head of a criterion."""
    model = DetectionModel(f"{architecture}.yaml", nc=2, verbose=False)
    model.args = get_cfg()
    whole = model.init_criterion()
    heads = [part for name in ("one2many", "one2one") if (part := getattr(whole, name, None)) is not None] or [whole]
    assert len(heads) == (2 if architecture == "yolo26n" else 1)
    for head in heads:
        assert isinstance(head.assigner, torch.nn.Module) and callable(head.loss)
        source = inspect.getsource(type(head).get_assigned_targets_and_loss)
        assert "_, target_bboxes, target_scores, fg_mask, target_gt_idx = self.assigner(" in source
        assert "target_scores_sum = target_scores.sum().clamp_(min=1)" in source
        assert "return loss * batch_size, loss_detach" in inspect.getsource(type(head).loss)


def test_library_that_is_told_that_it_is_alone_takes_no_part_in_others() -> None:
    assert (find("ultralytics.utils:RANK"), find("ultralytics.utils:LOCAL_RANK")) == (-1, -1)


def test_parameter_groups_are_named() -> None:
    text = source(f"{TRAINER}.build_optimizer")
    assert '"param_group": "bias"' in text, "loop.py warms biases up by this name"


def test_mosaic_can_be_told_its_partners() -> None:
    assert "self.get_indexes()" in source("ultralytics.data.augment:BaseMixTransform"), "dataset.py replaces it"
    assert "self.n" in source("ultralytics.data.augment:Mosaic.__init__"), "dataset.py reads it"


def test_endless_loader_asks_its_sampler_for_each_epoch() -> None:
    assert "yield from iter(self.sampler)" in source("ultralytics.data.build:_RepeatSampler.__iter__"), "dataset.py"


def test_cache_in_memory_lies_in_ims() -> None:
    text = source(BASE)
    for name in ("self.ims", "self.npy_files", "self.max_buffer_length", "self.im_files", "self.cv2_flag"):
        assert f"{name}" in text, f"dataset.py uses {name}"


def test_pictures_can_be_drawn_at_once() -> None:
    plot = find("ultralytics.utils.plotting:plot_images")
    assert "threaded" in inspect.getsource(find("ultralytics.utils:threaded")), "trainer.py passes threaded=False"
    assert hasattr(plot, "__wrapped__") or "threaded" in inspect.getsource(plot), "trainer.py"


def test_progress_bars_of_the_data_set_are_ours() -> None:
    from hsr_train.engines.detection import dataset

    assert find("ultralytics.data.base:TQDM") is dataset._bar
    assert "TQDM(" in source(f"{BASE}.cache_images"), "dataset.py replaces the module's TQDM"


def test_metrics_have_the_keys_that_we_rename() -> None:
    metrics = find("ultralytics.utils.metrics:DetMetrics")()
    keys = {f"metrics/{k}(B)" for k in ("precision", "recall", "mAP50", "mAP50-95")}
    assert keys <= set(metrics.keys), "evaluate.py: metrics_of"
    for name in ("ap_class_index", "class_result", "fitness", "results_dict"):
        assert hasattr(type(metrics), name), f"evaluate.py and loop.py use DetMetrics.{name}"
    text = source("ultralytics.utils.metrics:DetMetrics")
    assert "nt_per_class" in text and "nt_per_image" in text, "evaluate.py: per-class table"


# ---- isolation


def test_checkpoints_can_be_read_safely() -> None:
    assert find("ultralytics.nn.tasks:_SafeLoad").SUPPORTED, "weights.py: without it torch_safe_load runs pickles"
    assert find("ultralytics.utils:SAFE_LOAD"), "library.py sets ULTRALYTICS_SAFE_LOAD before the import"


@pytest.mark.parametrize("name", ["YOLO_AUTOINSTALL", "YOLO_OFFLINE", "YOLO_VERBOSE", "YOLO_CONFIG_DIR"])
def test_environment_variable_is_still_read(name: str) -> None:
    package = Path(ultralytics.__file__).parent
    text = "".join((package / "utils" / f).read_text() for f in ("__init__.py", "checks.py"))
    assert name in text, f"library.py sets {name}"


def test_library_is_offline_and_installs_nothing() -> None:
    utils = find("ultralytics.utils")
    assert utils.ONLINE is False
    assert utils.AUTOINSTALL is False
    assert Path(utils.USER_CONFIG_DIR).parent.name.startswith("hsr_train_ultralytics_")
    assert find("ultralytics.utils.events:events").enabled is False


def test_fonts_are_found_where_we_put_them() -> None:
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        assert name in source("ultralytics.utils.plotting:Annotator"), f"library.py provides {name}"
        assert find("ultralytics.utils.checks:check_font")(name).is_file()


def test_weights_are_loaded_through_the_name_that_we_replace() -> None:
    """The import is inside the function, so that replacing the module's attribute is enough."""
    assert re.search(
        r"\n +from ultralytics\.utils\.downloads import .*attempt_download_asset",
        source("ultralytics.nn.tasks:torch_safe_load"),
    ), "library.py: attempt_download_asset"


def test_download_address_is_that_of_the_library() -> None:
    downloads = importlib.util.find_spec("ultralytics.utils.downloads")
    assert downloads is not None and downloads.origin is not None
    text = Path(downloads.origin).read_text()
    release = re.search(r'def attempt_download_asset\(.*?release: str = "([^"]+)"', text, re.DOTALL)
    repository = re.search(r'def attempt_download_asset\(.*?repo: str = "([^"]+)"', text, re.DOTALL)
    assert release and repository
    expected = f"https://github.com/{repository[1]}/releases/download/{release[1]}/{{name}}.pt"
    assert expected == weights.DOWNLOAD_URL, "weights.py"


# ---- options

MEANINGS = {
    "hsv_h": "HSV hue augmentation fraction",
    "hsv_s": "HSV saturation augmentation fraction",
    "hsv_v": "HSV value (brightness) augmentation fraction",
    "degrees": "rotation degrees (+/-)",
    "translate": "translation fraction (+/-)",
    "scale": "scale gain (+/-)",
    "shear": "shear degrees (+/-)",
    "perspective": "perspective fraction",
    "flipud": "vertical flip probability",
    "fliplr": "horizontal flip probability",
    "bgr": "channel swap probability",
    "mosaic": "mosaic augmentation probability",
    "mixup": "MixUp augmentation probability",
    "cutmix": "CutMix augmentation probability",
    "copy_paste": "copy-paste fraction of eligible objects",
    "copy_paste_mode": "copy-paste strategy",
    "box": "box loss gain",
    "cls": "classification loss gain",
    "dfl": "box distance loss gain",
    "cls_pw": "class weights power",
    "cls_remap": "by class-name match",
    "single_cls": "all classes as a single class",
    "iou": "IoU threshold used for NMS",
    "conf": "confidence threshold",
    "max_det": "maximum number of detections per image",
    "agnostic_nms": "class-agnostic NMS",
    "compile": "torch.compile",
    "channels_last": "auto-enable for non-Windows CUDA training",
    "nms": "NMS-free head",
    "lrf": "final LR fraction; final LR = lr0 * lrf",
    "momentum": "SGD momentum or Adam beta1",
    "weight_decay": "weight decay",
    "warmup_epochs": "warmup epochs (fractions allowed)",
    "warmup_momentum": "initial momentum during warmup",
    "warmup_bias_lr": "bias learning rate during warmup",
    "nbs": "nominal batch size",
    "close_mosaic": "disable mosaic augmentation for final N epochs",
    "multi_scale": "multi-scale range as a fraction of imgsz",
    "patience": "early stop after N epochs without val improvement",
    "freeze": "freeze first N layers (int), or specific layer indices",
    "cos_lr": "cosine learning rate scheduler",
}


def comments() -> dict[str, str]:
    lines = (line.split("#", 1) for line in DEFAULTS.read_text().splitlines() if re.match(r"\w+:.*#", line))
    return {key.partition(":")[0]: comment for key, comment in lines}


@pytest.mark.parametrize("key", MEANINGS)
def test_option_still_means_what_the_schema_says(key: str) -> None:
    assert MEANINGS[key] in comments()[key], f"ultralytics describes {key} in other words: compare with detect.py"


def test_every_key_of_the_pass_through_and_of_augmentation_has_a_meaning_above() -> None:
    keys = {f.name for section in (UltralyticsConfig, AugmentationConfig) for f in fields(section)}
    assert keys <= set(MEANINGS)
    assert keys <= set(DEFAULT_CFG_DICT), "schema/detect.py names an option that ultralytics does not have"


def test_pass_through_holds_nothing_that_has_a_key_of_its_own() -> None:
    experiment = DetectExperiment()
    own = {f.name for part in (experiment.train, experiment.optimizer, experiment.augmentation) for f in fields(part)}
    assert not own & {f.name for f in fields(UltralyticsConfig)}


def test_translation_knows_only_options_of_the_library() -> None:
    experiment = DetectExperiment()
    experiment.train.cache, experiment.train.batch = "ram", 4
    arguments = training_arguments(experiment, "cpu", Path("x"))
    assert set(arguments) <= set(DEFAULT_CFG_DICT) | {"save_dir"}, "options.py"
    get_cfg(overrides=arguments)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_one_of_the_library(name: str) -> None:
    known = re.search(r"optimizers = \{(.*?)\}", source(f"{TRAINER}.build_optimizer"))
    assert known is not None
    assert name.lower() in known[1].lower(), "schema/detect.py: OPTIMIZERS"


def test_plain_labels_have_the_form_of_the_library() -> None:
    text = source("ultralytics.data.dataset:YOLODataset.result_to_label")
    for key in ("im_file", "shape", "cls", "bboxes", "segments", "keypoints", "normalized", "bbox_format"):
        assert f'"{key}"' in text, f"dataset.py: get_labels writes {key}"


# ---- models

MODEL_FILES = [file for file in sorted((CONF / "model").glob("*.yaml")) if architectures.split(file.stem)]


def shapes(name: str) -> Any:
    """Return the layers of a model with 80 classes, without memory for its weights."""
    with torch.device("meta"):
        layers, _ = parse_model({**weights.architecture_yaml(name), "nc": 80}, ch=3, verbose=False)
    return layers


def test_there_is_a_file_for_every_size_of_the_promised_families() -> None:
    promised = {f"{family}{size}" for family in ("yolov8", "yolo11", "yolo26") for size in "nsmlx"}
    assert promised <= {file.stem for file in MODEL_FILES}


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda f: f.stem)
def test_model_has_the_parameters_that_its_file_says(file: Path) -> None:
    text = file.read_text()
    name = yaml.safe_load(text)["name"]
    assert name == file.stem
    said = re.search(r"([\d.]+) million parameters", text)
    assert said, text
    millions = sum(p.numel() for p in shapes(name).parameters()) / 1e6
    assert round(millions, 1) == float(said[1])


@pytest.mark.slow
@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda f: f.stem)
def test_model_file_builds_a_detection_model(file: Path) -> None:
    model = DetectionModel(weights.architecture_yaml(file.stem), nc=3, verbose=False)
    assert type(model) is DetectionModel
    assert weights.architecture_name(model) == file.stem
    assert int(model.stride.max()) == 32


@pytest.mark.parametrize("name", architectures.NAMES)
def test_known_architecture_can_be_described(name: str) -> None:
    with warnings.catch_warnings(action="error"):
        ours, theirs = weights.architecture_yaml(name), yaml_model_load(f"{name}.yaml")
    assert ours == theirs, "weights.py: architecture_yaml"
