"""What `task=classify` adds: image classifiers, cross-validation, three ways to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hsr_train.config.schema.common import DividedDataConfig, Experiment, knob

CLASSIFY_OPTIMIZERS = ("AdamW", "Adam", "SGD", "RMSprop", "NAdam", "RAdam")
SCHEDULES = ("cosine", "step", "one_cycle", "constant")


@dataclass
class ClassifyDataConfig(DividedDataConfig):
    """The images, one folder for each class, and how they are divided."""

    path: str = knob(
        "demo",
        "A folder with train/<class> and val/<class>, or with raw/ and splits/; demo is the built-in set. "
        "mode=predict: an image or a folder.",
    )
    raw: str | None = knob(None, "Folder with one folder for each class; its splits lie in splits/ beside it.")
    name: str | None = knob(None, "Name of the set in run names; default: of the folder that holds the images.")
    fold: int | str = knob(0, "Which fold is trained, from 0; all trains every one.")
    groups: str | None = knob(
        None,
        "What never straddles a split: level:N (the Nth folder below the class), pattern:REGEX (its first group, on "
        "the file's name), or a CSV with the columns file and group.",
    )


@dataclass
class ClassifyModelConfig:
    """Which network, and from which weights it starts."""

    name: str = knob("resnet50", "A torchvision classifier such as resnet18, or timm/NAME for one of timm.")
    weights: str = knob("auto", "auto, pretrained, scratch, or a weights file (.pt, .pth, .safetensors).")
    weights_dirs: list[str] = knob([], "Folders searched for pretrained weights before any download.")
    num_classes: int | None = knob(None, "Read from the data; typed, it is checked against them.", ge=2)


@dataclass
class ClassifyTrainConfig:
    """How long, how large and on what the training runs."""

    epochs: int = knob(15, "Passes over the training set.", ge=1)
    max_steps: int | None = knob(
        None, "A budget in optimizer steps, for as many whole epochs as it pays for; typed epochs replace it.", ge=1
    )
    batch: int = knob(32, "Images per forward pass; of each process, where several train together.", ge=1)
    imgsz: int = knob(224, "Side of the square network input in pixels.", ge=32)
    patience: int = knob(0, "Epochs without a better validation score before stopping early; 0 never stops.", ge=0)
    best: str = knob("accuracy", "What best.pt is chosen by, on val.", choices=("accuracy", "macro_f1"))
    workers: int = knob(8, "Loader processes, bounded by the cores; 0 loads in the main process.", ge=0)
    cache: str | bool = knob("none", "Keep decoded images: ram or none.")
    val_batch: int | None = knob(None, "Images per forward pass in validation; default twice train.batch.", ge=1)
    time_budget: str | None = knob(None, "Be done in this time: 90s, 45min, 2h; decides the epochs, as they go.")
    finish_by: str | None = knob(None, "Be done at this time of day, such as 14:30 (in quotes in a YAML file).")
    save_period: int = knob(0, "Keep weights/epoch<N>.pt every so many epochs; 0 keeps none.", ge=0)
    freeze: int | str | None = knob(None, "Freeze the first N children of the network, or backbone: all but the head.")
    ema: float | None = knob(None, "Decay of the averaged weights, such as 0.999; null keeps none.", gt=0, lt=1)
    label_smoothing: float = knob(0.0, "Share of the target spread over all classes.", ge=0, lt=1)
    class_weights: str = knob("none", "Weights of the classes in the loss.", choices=("none", "balanced"))
    clip_norm: float | None = knob(None, "Largest norm of the gradient; null does not clip.", gt=0)
    compile: bool = knob(False, "torch.compile the network.")
    seed: int = knob(0, "Seed of every random draw in training.", ge=0)
    deterministic: bool = knob(True, "Use deterministic kernels: a repeated run is the same.")
    measure_latency: bool = knob(False, "At the end, measure how long best.pt takes for one image: latency_ms.")
    device: Any = knob("auto", "auto, cpu, a GPU number, cuda:N, or a list of numbers.")


@dataclass
class ClassifyOptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    name: str = knob("AdamW", "Optimizer, in any case.")
    lr: float = knob(1e-4, "Learning rate after warm-up.", gt=0, le=10)
    momentum: float = knob(0.9, "SGD and RMSprop: momentum; the others: beta1.", ge=0, lt=1)
    weight_decay: float = knob(0.01, "Weight decay on weights; not on biases and norms.", ge=0, le=1)
    schedule: str = knob("cosine", "How the learning rate falls.", choices=SCHEDULES)
    step_size: int = knob(7, "schedule=step: epochs between two steps.", ge=1)
    gamma: float = knob(0.1, "schedule=step: factor of a step.", gt=0, le=1)
    final: float = knob(0.01, "cosine, one_cycle: final learning rate as a fraction of lr.", ge=0, le=1)
    warmup_epochs: float = knob(0.0, "Epochs of linear warm-up; fractions allowed. one_cycle: of its rise.", ge=0)


@dataclass
class ClassifyAugmentationConfig:
    """What is drawn at random for each training image. Probabilities lie in [0, 1]."""

    crop: str = knob(
        "random_resized", "random_resized: a part of random area and shape; resize: the whole image, squeezed.",
        choices=("random_resized", "resize"),
    )  # fmt: skip
    min_area: float = knob(0.35, "Least share of the image's area in a random crop.", gt=0, le=1)
    fliplr: float = knob(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    flipud: float = knob(0.0, "Probability of a vertical flip.", ge=0, le=1)
    degrees: float = knob(0.0, "Rotation, up to plus or minus this many degrees.", ge=0, le=180)
    brightness: float = knob(0.2, "Brightness factor, 1 plus or minus this.", ge=0, le=1)
    contrast: float = knob(0.2, "Contrast factor, 1 plus or minus this.", ge=0, le=1)
    saturation: float = knob(0.2, "Saturation factor, 1 plus or minus this.", ge=0, le=1)
    hue: float = knob(0.0, "Hue shift, fraction of the colour circle.", ge=0, le=0.5)
    policy: str = knob(
        "none", "A published policy of operations, of torchvision.", choices=("none", "trivial", "randaugment")
    )
    erasing: float = knob(0.0, "Probability of erasing a rectangle.", ge=0, le=1)
    mixup: float = knob(0.0, "Beta parameter of mixup over the batch; 0 is off.", ge=0)
    cutmix: float = knob(0.0, "Beta parameter of CutMix over the batch; 0 is off.", ge=0)


@dataclass
class TrainerConfig:
    """The policy of the training step: precision, processes, privacy."""

    name: str = knob("standard", "How a step is made.", choices=("standard", "mixed_precision", "accelerate", "dp"))
    amp_dtype: str = knob(
        "float16", "mixed_precision, accelerate: the type that activations have.", choices=("float16", "bfloat16", "no")
    )
    gradient_accumulation_steps: int = knob(1, "Batches of train.batch images to an optimizer step.", ge=1)
    noise_multiplier: float | None = knob(None, "dp: noise relative to max_grad_norm; null: from target_epsilon.", gt=0)
    max_grad_norm: float = knob(1.0, "dp: each image's gradient is clipped to this norm.", gt=0)
    target_epsilon: float | None = knob(None, "dp: training stops before epsilon would exceed this.", gt=0)
    target_delta: float = knob(1e-5, "dp: delta of the (epsilon, delta) guarantee.", gt=0, lt=1)


@dataclass
class ClassifyPredictConfig:
    """What mode=predict writes."""

    top: int = knob(5, "Classes named for each image, the most probable first.", ge=1)


@dataclass
class ClassifyExperiment(Experiment):
    """task=classify: image classifiers of torchvision and timm."""

    RATE_KEY: ClassVar[str] = "optimizer.lr"
    PRECISION: ClassVar[tuple[str, Any, Any]] = ("trainer.name", "mixed_precision", "standard")

    @property
    def not_shared(self) -> tuple[str, str, str] | None:
        """See the parent."""
        return None if self.trainer.name == "accelerate" else ("trainer", self.trainer.name, "trainer=accelerate")

    data: ClassifyDataConfig = field(default_factory=ClassifyDataConfig)
    model: ClassifyModelConfig = field(default_factory=ClassifyModelConfig)
    train: ClassifyTrainConfig = field(default_factory=ClassifyTrainConfig)
    optimizer: ClassifyOptimizerConfig = field(default_factory=ClassifyOptimizerConfig)
    augmentation: ClassifyAugmentationConfig = field(default_factory=ClassifyAugmentationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    predict: ClassifyPredictConfig = field(default_factory=ClassifyPredictConfig)
