"""What is chosen of Hydra's own groups for a sweep: a sampler of the plugin's, a launcher, another sweeper."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
import refused_commands
from hydra_plugins.hydra_optuna_sweeper import config
from optuna.samplers import NSGAIISampler, QMCSampler, TPESampler
from refused_commands import Refused

from hsr_train.cli import main
from hsr_train.errors import InputError
from hsr_train.sweep.samplers import sampler_for
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import Spec

refused = refused_commands.refused  # the fixture
WORDS = ["-m", "train.device=cpu", "sweep.n_trials=2"]
LR = "optimizer.lr0=tag(log,interval(1e-4,1e-2))"
SAMPLER = "hydra.sweeper.sampler"
TPE = asdict(config.TPESamplerConfig(n_startup_trials=1))


def first_values(sampler: optuna.samplers.BaseSampler) -> tuple[float, float]:
    trial = optuna.create_study(sampler=sampler).ask()
    return trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)


def test_a_group_makes_its_sampler_with_its_options_seeded_by_seed_and_number() -> None:
    made = sampler_for("tpe", 7, 3, TPE)
    assert isinstance(made, TPESampler) and made._n_startup_trials == 1
    assert first_values(made) == first_values(sampler_for("tpe", 7, 3, TPE))
    others = [sampler_for("tpe", 7, 4, TPE), sampler_for("tpe", 8, 3, TPE)]
    assert first_values(made) not in [first_values(other) for other in others]
    assert isinstance(sampler_for("nsgaii", 7, 3, asdict(config.NSGAIISamplerConfig())), NSGAIISampler)
    sequence = [sampler_for("qmc", 7, number, asdict(config.QMCSamplerConfig(scramble=True))) for number in (0, 1)]
    assert all(isinstance(one, QMCSampler) and one._seed == 7 for one in sequence)  # all trials are of one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (asdict(config.NSGAIISamplerConfig(population_size=1)), "must be greater than or equal to 2"),
        (asdict(config.MOTPESamplerConfig()), "was removed in Optuna 4.0"),
        ({"_target_": "optuna.samplers.TPESampler", "n_startups": 1}, "unexpected keyword argument 'n_startups'"),
        ({"_target_": "os.getcwd"}, "is not in the Hydra execution whitelist"),
        ({"_target_": "optuna.samplers.intersection_search_space"}, "cannot be made"),
    ],
)
def test_a_group_that_optuna_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        sampler_for("mine", 1, 0, options)
    assert message in str(refusal.value) and "sweep.sampler=tpe" in str(refusal.value)


def spec_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Spec:
    """Return what a command would search, and search nothing."""
    opened: list[Spec] = []

    def note(self: Study, spec: Spec, worker: dict[str, Any]) -> None:
        opened.append(spec)
        raise InputError([])

    monkeypatch.setattr(Study, "open", note)
    assert main(words) == 2 and len(opened) == 1
    return opened[0]


def test_the_command_hands_a_group_to_its_study_which_is_the_same_study(
    small_set: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The built-in set would have to be drawn.
    on = [f"data.path={small_set}", f"data.cache_dir={shared_cache}", "model.weights=scratch"]
    plain = spec_of([*WORDS, LR, *on], monkeypatch)
    assert (plain.sampler, plain.seed, plain.sampler_options) == ("tpe", 42, None)
    group = ["hydra/sweeper/sampler=cmaes", f"{SAMPLER}.n_startup_trials=5", f"{SAMPLER}.seed=3"]
    other = spec_of([*WORDS, LR, *on, *group, "sweep.seed=9", "sweep.sampler=cmaes"], monkeypatch)
    assert (other.sampler, other.seed) == ("cmaes", 3)
    assert type(other.sampler_options) is dict and other.sampler_options["n_startup_trials"] == 5
    assert (other.url, other.name, other.fixed) == (plain.url, plain.name, plain.fixed)
    grid = spec_of([*WORDS[:2], *on, "train.seed=1,2", "hydra/sweeper/sampler=grid"], monkeypatch)
    assert (grid.sampler, grid.n_trials, grid.seed, grid.sampler_options) == ("grid", 2, 42, None)


REFUSED = [
    (
        [LR, "hydra/sweeper/sampler=tpe", f"{SAMPLER}.constraints_func=mine", "sweep.sampler=random"],
        [
            "sweep.sampler: random: is another one than hydra/sweeper/sampler=tpe",
            f"{SAMPLER}.constraints_func: mine: would not",
            "-> sweep.constraints=",
        ],
    ),
    ([LR, "hydra/sweeper/sampler=grid"], ["is a range to sample from, which a grid cannot do"]),
    (["train.seed=1,2", "--config-dir", "ours", "hydra/launcher=mine"], ["hydra/launcher: mine: takes no part"]),
    (["train.seed=1,2", "hydra/launcher=submitit_slurm"], ["hydra/launcher: submitit_slurm: must be one of basic"]),
    (
        ["train.seed=1,2", "hydra/sweeper=basic", "sweep.objective=recall"],
        ["sweep.n_trials: 2: has no effect with hydra/sweeper=basic", "sweep.objective: recall: has no effect"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "messages"), REFUSED, ids=lambda v: v[-1])
def test_refused(words: list[str], messages: list[str], refused: Refused, tmp_path: Path) -> None:
    launcher = tmp_path / "ours" / "hydra" / "launcher" / "mine.yaml"
    launcher.parent.mkdir(parents=True)
    launcher.write_text("_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n")
    refused([*WORDS, *words], messages)


def test_only_what_another_sweeper_reads_may_be_typed_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", LR, "hydra/sweeper=optuna", "sweep.objective=recall", "sweep.jobs=2"]) == 2
    errors = capsys.readouterr().err
    assert "sweep.jobs: 2: has no effect with hydra/sweeper=optuna" in errors and "sweep.objective" not in errors


@pytest.mark.parametrize("word", ["hydra/sweeper/sampler=tpe", "hydra/launcher=basic", f"{SAMPLER}.seed=1"])
def test_hydras_groups_of_sweeps_are_refused_without_multirun(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "train.device=cpu"]) == 2
    assert f"{word.replace('=', ': ')}: has no effect without --multirun" in capsys.readouterr().err
