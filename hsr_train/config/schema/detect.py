"""What `task=detect` adds: YOLO detectors, in YOLO's own words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hsr_train.config.schema.common import DividedDataConfig, Experiment, knob
from hsr_train.config.schema.synthetic import SyntheticConfig

OPTIMIZERS = ("AdamW", "Adam", "Adamax", "NAdam", "RAdam", "RMSProp", "SGD", "MuSGD", "auto")
SWA_LEAST_EPOCHS = 15
"""Fewer are no training of which the last fifth could be averaged."""


@dataclass
class ModelConfig:
    """Which network, and from which weights it starts."""

    name: str = knob("yolov8m", "Architecture: an ultralytics detection model such as yolov8n, yolo11s, yolo26m.")
    weights: str = knob("auto", "auto, pretrained, scratch, or a weights file (.pt).")
    weights_dirs: list[str] = knob([], "Folders searched for pretrained weights before any download.")


@dataclass
class TrainConfig:
    """How long, how large and on what the training runs."""

    epochs: int = knob(50, "Passes over the training set.", ge=1)
    max_steps: int | None = knob(
        None, "A budget in optimizer steps, for as many whole epochs as it pays for; typed epochs replace it.", ge=1
    )
    batch: int | str = knob(
        16,
        "Images per forward pass, of each process where several train together; auto: from a table by GPU memory and "
        "image size; probe: measured.",
    )
    imgsz: int = knob(640, "Side of the square network input in pixels, a multiple of 32.", ge=32)
    patience: int = knob(10, "Epochs without a better validation fitness before stopping early; 0 never stops.", ge=0)
    workers: int = knob(8, "Loader processes, bounded by the cores; 0 loads in the main process.", ge=0)
    cache: str | bool = knob("auto", "Keep decoded images: auto, ram, disk or none.")
    amp: bool = knob(True, "Mixed precision on GPUs that gain from it; no effect on a CPU.")
    close_mosaic: int = knob(10, "Last epochs without mosaic.", ge=0)
    cos_lr: bool = knob(False, "Cosine instead of linear learning-rate decay.")
    multi_scale: float | int | bool = knob(0.0, "Vary the image size by up to this fraction per batch; true means 0.5.")
    freeze: Any = knob(
        None,
        "Freeze the first N modules (a number), or modules by number ([0,1,5]) or name: backbone, model.22.cv2, or a "
        "pattern such as model.1*.",
    )
    swa: bool = knob(
        False, "Average the weights of the last fifth of the epochs; kept as swa.pt if better than best.pt."
    )
    seed: int = knob(0, "Seed of every random draw in training.", ge=0)
    deterministic: bool = knob(True, "Use deterministic kernels: a repeated run is the same.")
    device: Any = knob("auto", "auto, cpu, a GPU number, or a list of them: a process for each.")
    val_batch: int | None = knob(None, "Images per forward pass in validation; default twice train.batch.", ge=1)
    nbs: int = knob(64, "Effective batch in images: gradients accumulate until it is reached.", ge=1)
    time_budget: str | None = knob(None, "Be done in this time: 90s, 45min, 2h; decides the epochs, as they go.")
    finish_by: str | None = knob(None, "Be done at this time of day, such as 14:30 (in quotes in a YAML file).")
    save_period: int = knob(5, "Keep weights/epoch<N>.pt every so many epochs; 0 keeps none.", ge=0)
    measure_latency: bool = knob(False, "At the end, measure how long best.pt takes for one image: latency_ms.")


@dataclass
class LayerRatesConfig:
    """Layer-wise learning rates: the nearer to the input, the slower a module learns."""

    enabled: bool = knob(False, "Learn slower in early layers: lr0 x decay_rate^(head - module).")
    decay_rate: float = knob(0.9, "What a module learns at, as a fraction of the rate of the one after it.", gt=0, le=1)


@dataclass
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    name: str = knob("AdamW", "Optimizer, in any case; auto lets ultralytics choose name, rate and momentum.")
    lr0: float | None = knob(0.001, "Learning rate after warm-up.", gt=0, le=1)
    lrf: float = knob(0.01, "Final learning rate as a fraction of lr0.", gt=0, le=1)
    momentum: float | None = knob(0.937, "SGD momentum, or Adam's beta1.", ge=0, lt=1)
    weight_decay: float = knob(0.0005, "Decoupled weight decay (L2) on weights; not on biases and norms.", ge=0, le=1)
    warmup_epochs: float = knob(3.0, "Epochs of linear warm-up; fractions allowed.", ge=0)
    warmup_momentum: float = knob(0.8, "Momentum at the start of warm-up.", ge=0, lt=1)
    warmup_bias_lr: float = knob(0.0, "Learning rate of biases at the start of warm-up.", ge=0, le=1)
    llrd: LayerRatesConfig = field(default_factory=LayerRatesConfig)


@dataclass
class AugmentationConfig:
    """What is drawn at random for each training image. Probabilities lie in [0, 1]."""

    hsv_h: float = knob(0.015, "Hue shift, fraction of the colour circle.", ge=0, le=1)
    hsv_s: float = knob(0.7, "Saturation gain, fraction.", ge=0, le=1)
    hsv_v: float = knob(0.4, "Brightness gain, fraction.", ge=0, le=1)
    degrees: float = knob(10.0, "Rotation, up to plus or minus this many degrees.", ge=0, le=180)
    translate: float = knob(0.1, "Shift, fraction of the image side.", ge=0, le=1)
    scale: float = knob(0.5, "Zoom, 0.5 means 0.5x to 1.5x.", ge=0, lt=1)
    shear: float = knob(0.0, "Shear, up to plus or minus this many degrees.", ge=0, le=90)
    perspective: float = knob(0.0, "Perspective, fraction.", ge=0, le=0.001)
    flipud: float = knob(0.0, "Probability of a vertical flip.", ge=0, le=1)
    fliplr: float = knob(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    bgr: float = knob(0.0, "Probability of swapping red and blue.", ge=0, le=1)
    mosaic: float = knob(1.0, "Probability of a four-image mosaic.", ge=0, le=1)
    mixup: float = knob(0.1, "Probability of blending two images.", ge=0, le=1)
    cutmix: float = knob(0.0, "Probability of pasting a rectangle of another image.", ge=0, le=1)
    copy_paste: float = knob(0.0, "Fraction of polygon-labelled objects copied within the batch.", ge=0, le=1)
    copy_paste_mode: str = knob("flip", "How copy_paste finds objects.", choices=("flip", "mixup"))


DEMO_SETS = {"demo": "data.yaml", "demo-few": "few.yaml"}
"""Words for `data.path`: the built-in sets, each with the file that describes it in the folder that is drawn."""


@dataclass
class DataConfig(DividedDataConfig):
    """The images and labels."""

    path: str = knob(
        "demo",
        "data.yaml of a YOLO set; demo is the built-in set, demo-few that with ten training images of each class. "
        "mode=predict: an image, folder or video.",
    )
    groups: str | None = knob(
        None,
        "What never straddles a split: level:N (the Nth folder below the split's own), pattern:REGEX (its first group, "
        "on the file's name), or a CSV with the columns file and group.",
    )
    on_bad: str = knob(
        "error", "Broken images or labels: stop with a report, or train without them.", choices=("error", "skip")
    )
    on_leak: str = knob("error", "The same image content in train and val: stop or warn.", choices=("error", "warn"))
    val_fraction: float | None = knob(None, "Share of train that becomes val where the set has none.", gt=0, lt=1)
    seed: int = knob(42, "Seed of mode=split, of the val_fraction split and of the built-in demo set.", ge=0)


@dataclass
class PredictConfig:
    """Thresholds of mode=predict."""

    conf: float = knob(0.25, "Least score of a box that is kept.", ge=0, le=1)
    iou: float = knob(0.7, "Overlap above which the weaker of two boxes is dropped.", gt=0, le=1)
    max_det: int = knob(300, "Most boxes per image.", ge=1)


@dataclass
class HardwareConfig:
    """How much of the hardware a run may take."""

    max_vram_utilization: float = knob(
        0.85, "train.batch=probe: the part of the GPU's memory that all processes together may fill.", gt=0, le=1
    )


@dataclass
class UltralyticsConfig:
    """Pass-through: further options of ultralytics under their own names; null leaves the library's default.

    A contract test holds each name against the installed version's `default.yaml`.
    """

    box: float | None = knob(None, "Gain of the box loss.", ge=0)
    cls: float | None = knob(None, "Gain of the class loss.", ge=0)
    dfl: float | None = knob(None, "Gain of the distribution focal loss.", ge=0)
    cls_pw: float | None = knob(None, "Power of the inverse class frequency as class weight.", ge=0, le=1)
    cls_remap: bool | None = knob(None, "Keep pretrained head rows of classes with the same name.")
    single_cls: bool | None = knob(None, "Treat all classes as one.")
    iou: float | None = knob(None, "Overlap for non-maximum suppression in validation.", gt=0, le=1)
    conf: float | None = knob(None, "Least score in validation.", ge=0, le=1)
    max_det: int | None = knob(None, "Most boxes per image in validation.", ge=1)
    agnostic_nms: bool | None = knob(None, "Suppress overlapping boxes across classes.")
    compile: bool | None = knob(None, "torch.compile the model.")
    channels_last: bool | None = knob(None, "Memory format of images on the GPU.")
    nms: bool | None = knob(None, "False: the NMS-free head of models that have one.")


@dataclass
class DetectExperiment(Experiment):
    """task=detect: YOLO detectors through ultralytics."""

    RATE_KEY: ClassVar[str] = "optimizer.lr0"
    PRECISION: ClassVar[tuple[str, Any, Any]] = ("train.amp", True, False)

    @property
    def not_shared(self) -> tuple[str, str, str] | None:
        """See the parent; any detector can be trained by several processes."""
        return None

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    ultralytics: UltralyticsConfig = field(default_factory=UltralyticsConfig)
