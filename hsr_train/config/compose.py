"""From overrides to one typed, checked experiment: the only way in, for the command and for Python.

Hydra composes `conf/` (and a `config_dir`); what depends on the hardware is found out first (`relative.py`), and
nothing leaves here unchecked (`strict.py`, `checks.py`). Hydra's own refusals become ours (`refusals.py`). A resumed
or reproduced run is composed from its own record instead (`resume.py`, `reproduce.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_search_path
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from hsr_train.config import refusals, registration, relative
from hsr_train.config.checks import check
from hsr_train.config.overrides import Typed, quote_paths
from hsr_train.config.paths import CONF_DIR
from hsr_train.config.reproduce import reproduced
from hsr_train.config.resume import resumed
from hsr_train.config.schema import AnyExperiment, Experiment, Origin
from hsr_train.config.strict import build, leaves
from hsr_train.decisions import Decision, Decisions
from hsr_train.errors import InputError, Problem


def compose(
    overrides: Sequence[str] = (), config_dir: Path | str | None = None, config_name: str | None = None
) -> AnyExperiment:
    """Compose, resolve and check an experiment.

    Args:
        overrides: What would be typed after `python -m hsr_train`; paths need no quotes.
        config_dir: A folder with further YAML files in the same groups, as --config-dir.
        config_name: The primary configuration, as --config-name; default: the task's.

    Returns:
        The experiment, with `origin` filled; its decisions have been logged.

    Raises:
        InputError: With every problem found.
    """
    experiment = compose_quietly(overrides, config_dir, config_name)
    log_decisions(experiment)
    return experiment


def compose_quietly(
    overrides: Sequence[str] = (), config_dir: Path | str | None = None, config_name: str | None = None
) -> AnyExperiment:
    """Do what `compose` does without a line in the log, for a check ahead of a run."""
    typed = Typed.parse(quote_paths(overrides))
    if typed.value("reproduce") is not None:
        return reproduced(typed)
    if typed.value("resume") is not None:
        return resumed(typed)
    with _hydra(config_dir):
        return _from_groups(typed, registration.primary(config_name, str(typed.value("task", "detect"))))


def choices_of(schema: type[Experiment], config_dir: Path | str | None = None) -> dict[str, list[str]]:
    """Return the choices that fit a task, by group, those of a team's folder included."""
    with _hydra(config_dir):
        return refusals.choices_of(schema)


def log_decisions(experiment: Experiment) -> None:
    """Log what was decided while composing."""
    logged = Decisions()
    for decision in experiment.origin.decisions:
        logged.record(decision.key, decision.value, decision.reason)


@contextmanager
def _hydra(config_dir: Path | str | None) -> Iterator[None]:
    """Open Hydra on our configuration and the user's."""
    sources = [CONF_DIR]
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise InputError(Problem("--config-dir", str(config_dir), "is not a folder", "--config-dir FOLDER"))
        sources.append(folder)
    registration.register()
    # A job of --multirun composes while Hydra runs it; Hydra allows one open configuration at a time.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_search_path([f"file://{source}" for source in sources], job_name="hsr_train"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _from_groups(typed: Typed, config_name: str) -> AnyExperiment:
    try:
        return _once(typed, config_name)
    except refusals.REFUSED as error:
        problems, accepted = refusals.explain(error, typed, config_name)
    # What is left may be wrong as well; all of it belongs into one message. It says nothing without its task.
    known = all(problem.key != "task" for problem in problems)
    if known and accepted.lines and len(accepted.lines) < len(typed.lines):
        try:
            _once(accepted, config_name)
        except InputError as more:
            problems += more.problems
        except refusals.REFUSED as more:
            problems += refusals.explain(more, accepted, config_name)[0]
    raise InputError(problems)


@dataclass
class _Composition:
    """What Hydra made: the configuration, its plain form, and the choice of each group."""

    config: DictConfig
    plain: dict[str, Any]
    choices: dict[str, Any]
    decisions: list[Decision] = field(default_factory=list)


def _once(typed: Typed, config_name: str) -> AnyExperiment:
    problems = [
        Problem(o.key_or_group, line, "nothing can be removed", f"{o.key_or_group}=VALUE")
        for o, line in zip(typed.parsed, typed.lines, strict=True)
        if o.is_delete() and not o.is_hydra_override()
    ]
    composition = _resolve(typed, config_name, problems)
    task, preset = composition.choices.get("task"), composition.choices.get("preset")
    schema = registration.SCHEMAS[task or composition.plain.get("task", "detect")]
    if composition.plain.get("task", task) != task and preset:
        sweep = composition.choices.get("sweep")
        is_sweep = refusals.is_of_another_task("sweep", sweep, schema)
        group, choice = ("sweep", sweep) if is_sweep else ("preset", preset)
        raise InputError([*problems, refusals.of_another_task(group, str(choice), schema)])
    experiment, refused = build(schema, composition.plain)
    problems += refused
    problems += [
        _only_typed(key, run) for key in ("resume", "reproduce") if (run := getattr(experiment, key)) is not None
    ]
    found, decided = check(experiment, typed.keys, settled=_is_whole(config_name, schema))
    bad = {p.key for p in problems}
    problems += [p for p in found if p.key not in bad]
    if problems:
        raise InputError(problems)
    experiment.origin = Origin(
        overrides=typed.lines,
        typed=sorted(typed.keys),
        config_yaml=OmegaConf.to_yaml(OmegaConf.masked_copy(composition.config, list(composition.plain))),
        hydra_yaml=_hydra_yaml(composition.config),
        decisions=composition.decisions + decided,
        tier_batch=_tier_file(composition.plain["gpu_tier"]).get("batch", Origin.tier_batch),
    )
    return cast(AnyExperiment, experiment)


def _is_whole(config_name: str, schema: type[Experiment]) -> bool:
    """Whether a primary configuration says everything itself, as a sweep's best.yaml: nothing is decided for it."""
    found = _loader().repository.load_config(config_name)
    own = None if found is None else OmegaConf.to_container(found.config, resolve=False)
    return all(_has(own, key.split(".")) for key, _, _ in leaves(schema) if key not in ("resume", "reproduce"))


def _has(values: Any, path: list[str]) -> bool:
    return not path or (isinstance(values, dict) and path[0] in values and _has(values[path[0]], path[1:]))


def _only_typed(key: str, run: str) -> Problem:
    return Problem(
        key, run, "has no effect in a file: it is read before files are", f"on the command line: {key}={run}"
    )


def _hydra_yaml(config: DictConfig) -> str:
    """Return Hydra's own section as it would record it: without the texts of its help."""
    section = OmegaConf.to_container(config.hydra, resolve=False, enum_to_str=True)
    assert isinstance(section, dict)
    kept = {key: value for key, value in section.items() if key not in ("help", "hydra_help")}
    return OmegaConf.to_yaml(OmegaConf.create({"hydra": kept}))


def _resolve(typed: Typed, config_name: str, problems: list[Problem]) -> _Composition:
    """Compose as often as needed: once, again if a file names another device, again if a preset adjusts the tier."""
    registration.set_adjustment({})
    device = typed.value("train.device", "auto")
    tier = _tier(device, problems) if typed.value("gpu_tier", "auto") == "auto" else None
    result = _compose(typed, config_name, tier)
    automatic = result.choices.get("gpu_tier") == "auto"
    if automatic and result.plain["train"]["device"] != device:
        tier = _tier(result.plain["train"]["device"], problems)
        result = _compose(typed, config_name, tier)
    decisions = [tier] if automatic and tier is not None else []
    if result.plain["gpu_tier"] == "manual":
        values = _tier_file("manual")
        if result.plain["task"] == "classify":  # conf/classify_sizes.yaml beats the rest.
            values = {"workers": values["workers"]}
        decisions.append(Decision("gpu_tier", "manual", f"no detection: {_values(values)}"))
    node, adjusted = relative.adjustment(result.plain, typed.keys, set(_loader().get_group_options("model")))
    if node:
        registration.set_adjustment(node)
        result = _compose(typed, config_name, tier)
    result.decisions = decisions + adjusted
    return result


def _tier(device: Any, problems: list[Problem]) -> Decision:
    try:
        return relative.tier_for(device)
    except InputError as error:
        problems += error.problems
        return Decision("gpu_tier", "manual", "the device is unknown")


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def _tier_file(tier: str) -> dict[str, Any]:
    """Return what a tier's own file says, whatever a preset or the command line makes of it, with its model."""
    found = _loader().repository.load_config(f"gpu_tier/{tier}")
    if found is None:
        return {}
    values = cast(dict[str, Any], OmegaConf.to_container(found.config, resolve=False))
    models = [d.value for d in found.defaults_list or () if isinstance(d, GroupDefault) and d.group == "/model"]
    return {"model": models[0] if models else None, **values.get("train", {})}


def _values(tier: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in tier.items())


def _compose(typed: Typed, config_name: str, tier: Decision | None) -> _Composition:
    if tier is not None:
        registration.set_auto_tier(tier.value)
    try:
        config = hydra_compose(config_name, typed.lines, return_hydra_config=True)
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # Such as `preset=null`.
        raise ConfigCompositionException(str(error)) from error
    choices = dict(config.hydra.runtime.choices)
    # These two label the run; the groups know them better than any file that might forget to say so.
    for key in ("preset", "gpu_tier"):
        if choices.get(key):
            config[key] = choices[key]
    if choices.get("gpu_tier") == "auto" and tier is not None:
        config["gpu_tier"] = tier.value
    # Section by section while Hydra's own node is still there, for references such as ${hydra:runtime.cwd}.
    plain = {
        str(key): OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
        for key in config
        if key != "hydra" and not OmegaConf.is_missing(config, key)
    }
    return _Composition(config, plain, choices)
