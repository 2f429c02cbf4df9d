"""The typed experiment: every key a user can type, with its unit, its range and its meaning."""

from hsr_train.config.schema.classify import (
    ClassifyAugmentationConfig,
    ClassifyDataConfig,
    ClassifyExperiment,
    ClassifyModelConfig,
    ClassifyOptimizerConfig,
    ClassifyTrainConfig,
    TrainerConfig,
)
from hsr_train.config.schema.common import (
    MODES,
    AdjustConfig,
    Experiment,
    ExportConfig,
    Origin,
    RecoveryConfig,
    TensorboardConfig,
)
from hsr_train.config.schema.detect import (
    OPTIMIZERS,
    AugmentationConfig,
    DataConfig,
    DetectExperiment,
    ModelConfig,
    OptimizerConfig,
    PredictConfig,
    TrainConfig,
    UltralyticsConfig,
)

__all__ = [
    "MODES",
    "OPTIMIZERS",
    "AdjustConfig",
    "AugmentationConfig",
    "ClassifyAugmentationConfig",
    "ClassifyDataConfig",
    "ClassifyExperiment",
    "ClassifyModelConfig",
    "ClassifyOptimizerConfig",
    "ClassifyTrainConfig",
    "DataConfig",
    "DetectExperiment",
    "Experiment",
    "ExportConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Origin",
    "PredictConfig",
    "RecoveryConfig",
    "TensorboardConfig",
    "TrainConfig",
    "TrainerConfig",
    "UltralyticsConfig",
]
