"""What Hydra is told in code: the schema of each task, the generated entries, our sweeper."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from hsr_train.config.paths import SWEEPS_DIR
from hsr_train.config.schema import ClassifyExperiment, DetectExperiment, Experiment

# A task's YAML in conf/task pulls its schema in by this name.
SCHEMAS: dict[str, type[Experiment]] = {"detect": DetectExperiment, "classify": ClassifyExperiment}
# Its primary configuration in conf/, where none is named.
PRIMARIES = {"detect": "config", "classify": "classify"}

_PROVIDER = "hsr_train"


def primary(config_name: str | None, task: str) -> str:
    """Return the name of the primary configuration: the one that is named, or the task's."""
    return config_name or PRIMARIES.get(task, PRIMARIES["detect"])


@cache
def register() -> None:
    """Put our entries into Hydra's ConfigStore; what a composition generated is not reset by a second call."""
    store = ConfigStore.instance()
    for task, schema in SCHEMAS.items():
        store.store(group="schema", name=task, node=schema, package="_global_", provider=_PROVIDER, replace=True)
    sweeper = {
        "defaults": [{"sampler": None}],
        "_target_": "hsr_train.sweep.sweeper.HsrSweeper",
        "_convert_": "all",
        "params": None,
    }
    store.store(group="hydra/sweeper", name="hsr", node=sweeper, provider=_PROVIDER, replace=True)
    for file in sorted(SWEEPS_DIR.glob("*.yaml")):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        store.store(group="sweep", name=file.stem, node=node, package="_global_", provider=_PROVIDER, replace=True)
    set_auto_tier("manual")
    set_adjustment({})


def set_auto_tier(tier: str) -> None:
    """Make `gpu_tier=auto` stand for a tier in the next composition."""
    _generate("gpu_tier", "auto", {"defaults": [tier, "_self_"]})


def set_adjustment(node: dict[str, Any]) -> None:
    """Lay values between the preset and the command line in the next composition."""
    _generate("generated", "adjustment", node)


def _generate(group: str, name: str, node: dict[str, Any]) -> None:
    ConfigStore.instance().store(
        group=group, name=name, node=node, package="_global_", provider=_PROVIDER, replace=True
    )
