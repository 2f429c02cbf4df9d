"""`--multirun` without a search: one run for each combination of the typed values.

Hydra's basic sweeper, with two differences: every job is checked before the first starts, and nothing is written
(the parent writes `multirun.yaml`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from hsr_train.errors import InputError, Problem, RunError


class GridSweeper(BasicSweeper):
    """Runs the grid; the task function has a method `check(overrides)` that raises InputError."""

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
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs = self.split_arguments(parser.parse_overrides(arguments), None)[0]
        problems: dict[tuple[str, str], Problem] = {}
        for job in jobs:
            try:
                self.check(job)
            except InputError as error:
                problems |= {(p.key, p.value): p for p in error.problems}
        if problems:
            raise InputError(list(problems.values()))
        results = list(self.launcher.launch(jobs, initial_job_idx=0))
        failed = [(number, r) for number, r in enumerate(results) if r.status is not JobStatus.COMPLETED]
        if failed:
            self._report(failed, len(results))
        return [results]

    @staticmethod
    def _report(failed: list[tuple[int, JobReturn]], total: int) -> None:
        errors = [r._return_value for _, r in failed]
        for error in errors:
            if not isinstance(error, (InputError, RunError)):
                raise error
        if all(isinstance(error, InputError) for error in errors):
            raise InputError([p for error in errors for p in error.problems])
        lines = [f"job {number} ({' '.join(r.overrides or ())}): {r._return_value}" for number, r in failed]
        raise RunError(f"{len(failed)} of {total} jobs failed\n" + "\n".join(lines))
