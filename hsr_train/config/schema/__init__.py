"""The typed experiment: every key a user can type, with its unit, its range and its meaning."""

from hsr_train.config.schema.classify import (
    CLASSIFY_OPTIMIZERS,
    ClassifyAugmentationConfig,
    ClassifyDataConfig,
    ClassifyExperiment,
    ClassifyModelConfig,
    ClassifyOptimizerConfig,
    ClassifyPredictConfig,
    ClassifyTrainConfig,
    TrainerConfig,
)
from hsr_train.config.schema.common import (
    MODES,
    AdjustConfig,
    DividedDataConfig,
    Experiment,
    ExportConfig,
    Origin,
    RecoveryConfig,
    TensorboardConfig,
)
from hsr_train.config.schema.detect import (
    DEMO_SETS,
    OPTIMIZERS,
    SWA_LEAST_EPOCHS,
    AugmentationConfig,
    DataConfig,
    DetectExperiment,
    HardwareConfig,
    ModelConfig,
    OptimizerConfig,
    PredictConfig,
    TrainConfig,
    UltralyticsConfig,
)
from hsr_train.config.schema.sweep import SweepConfig
from hsr_train.config.schema.synthetic import SyntheticConfig

AnyExperiment = DetectExperiment | ClassifyExperiment

__all__ = [
    "CLASSIFY_OPTIMIZERS",
    "DEMO_SETS",
    "MODES",
    "OPTIMIZERS",
    "SWA_LEAST_EPOCHS",
    "AdjustConfig",
    "AnyExperiment",
    "AugmentationConfig",
    "ClassifyAugmentationConfig",
    "ClassifyDataConfig",
    "ClassifyExperiment",
    "ClassifyModelConfig",
    "ClassifyOptimizerConfig",
    "ClassifyPredictConfig",
    "ClassifyTrainConfig",
    "DataConfig",
    "DetectExperiment",
    "DividedDataConfig",
    "Experiment",
    "ExportConfig",
    "HardwareConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Origin",
    "PredictConfig",
    "RecoveryConfig",
    "SweepConfig",
    "SyntheticConfig",
    "TensorboardConfig",
    "TrainConfig",
    "TrainerConfig",
    "UltralyticsConfig",
]
