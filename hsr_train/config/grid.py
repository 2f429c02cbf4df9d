"""`--multirun` without a search: one run for each combination of the typed values.

Hydra's basic sweeper, with two differences: every job is checked before the first starts, and nothing is written
(the parent writes `multirun.yaml`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn

from hsr_train.errors import HsrTrainError, InputError, Problem, RunError


class GridSweeper(BasicSweeper):
    """Runs the grid; the task function has a method `check(overrides)` and returns an error meant for the user."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep the job's own check beside Hydra's context."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.check: Callable[[list[str]], None] = task_function.check

    def sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        """Run all jobs, one after another with Hydra's basic launcher; a failed one does not stop the others.

        Raises:
            InputError: A job's configuration is refused (before any has started), or all failures were such.
            RunError: Jobs failed for other reasons known to us.
        """
        assert self.hydra_context is not None
        assert self.launcher is not None
        overrides = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(arguments)
        sampled = [o for o in overrides if o.is_sweep_override() and not o.is_discrete_sweep()]
        if sampled:
            allowed = "is a range to sample from, which a grid cannot do"
            raise InputError(
                [Problem(o.key_or_group, _value(o.input_line), allowed, f"{o.key_or_group}=A,B,C") for o in sampled]
            )
        tasks = [o for o in overrides if o.key_or_group == "task" and o.is_sweep_override()]
        if tasks:  # Hydra composes every job from one primary configuration, and each task has its own.
            remedy = "one command for each task, such as --multirun task=classify"
            raise InputError([Problem("task", _value(o.input_line), "a grid is of one task", remedy) for o in tasks])
        jobs = self.split_arguments(overrides, None)[0]
        problems: dict[tuple[str, str], Problem] = {}
        for job in jobs:
            try:
                self.check(job)
            except InputError as error:
                problems |= {(p.key, p.value): p for p in error.problems}
        if problems:
            raise InputError(list(problems.values()))
        results = list(self.launcher.launch(jobs, initial_job_idx=0))
        # `return_value` raises what is no error for the user, with its traceback.
        failed = {
            number: r.return_value for number, r in enumerate(results) if isinstance(r.return_value, HsrTrainError)
        }
        if failed:
            which = ", ".join(str(number) for number in failed)
            message = f"{len(failed)} of {len(jobs)} jobs failed: {which}"
            if all(isinstance(error, InputError) for error in failed.values()):
                raise InputError(Problem("--multirun", "", message))
            raise RunError(message)
        return [results]


def _value(line: str | None) -> str:
    return (line or "").partition("=")[2]
