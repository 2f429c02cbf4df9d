"""The command line: every Hydra form, one way in (`config.compose`), one error boundary, one exit status.

0 done, 2 the input is at fault, 1 anything else, 130 after Ctrl-C, 143 after SIGTERM. Logs go to standard error;
`--cfg` prints only YAML on standard output.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hsr_train.errors import HsrTrainError, InputError, Problem, Terminated

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; default: those of this process.

    Returns:
        The exit status. Defects of ours are raised, with their traceback.
    """
    from hsr_train.run.log import configure_console

    configure_console()
    try:
        with _terminable():
            _command(list(sys.argv[1:] if argv is None else argv))
    except HsrTrainError as error:
        log.error("%s", error)
        return error.exit_status
    except Terminated:
        log.error("Stopped by SIGTERM")
        return 143
    except KeyboardInterrupt:
        log.error("Stopped by Ctrl-C")
        return 130
    except SystemExit as stop:  # Hydra's --help and argparse end this way.
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _command(argv: list[str]) -> None:
    from hydra._internal.utils import get_args_parser

    from hsr_train.config.overrides import quote_paths

    args, unknown = get_args_parser().parse_known_intermixed_args(argv)
    if unknown:
        raise InputError([_unknown_option(option) for option in unknown])
    multirun = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    job = _Job(args.config_dir, args.config_name or "config")
    quoted = quote_paths(argv, sweep=multirun)
    overrides = quote_paths(args.overrides, sweep=multirun)
    if args.cfg == "job" and not args.package and not multirun:
        from hsr_train.config.saved import dump

        sys.stdout.write(dump(job.compose(overrides)))
        return
    if not multirun and not (args.help or args.hydra_help or args.info or args.shell_completion):
        job.compose(overrides)
    _hand_to_hydra(quoted, job, multirun)


class _Job:
    """What Hydra calls for each job: composes it again, through our own door, and runs it."""

    def __init__(self, config_dir: str | None, config_name: str) -> None:
        self.config_dir = config_dir
        self.config_name = config_name

    def compose(self, overrides: list[str]) -> Any:
        """Return the checked experiment of some overrides."""
        from hsr_train.config.compose import compose

        return compose(overrides, self.config_dir, self.config_name)

    def check(self, overrides: list[str]) -> None:
        """Refuse a job before any has started."""
        self.compose(overrides)

    def __call__(self, _: Any) -> Any:
        """Run the job whose overrides Hydra holds."""
        from hydra.core.hydra_config import HydraConfig

        import hsr_train

        experiment = self.compose(list(HydraConfig.get().overrides.task))
        return hsr_train.execute(experiment)


def _hand_to_hydra(argv: list[str], job: _Job, multirun: bool) -> None:
    """Let Hydra run the job or the grid of jobs, print its help, or complete a word."""
    import hydra
    from hydra.core.plugins import Plugins

    from hsr_train.config import registration
    from hsr_train.config.compose import REFUSED
    from hsr_train.config.paths import CONF_DIR
    from hsr_train.config.refusals import described

    registration.register()
    if multirun:
        from hsr_train.config.grid import GridSweeper

        Plugins.instance().register(GridSweeper)
    with _replaced_argv(argv), _errors_raised():
        try:
            hydra.main(config_path=str(CONF_DIR), config_name="config")(job)()
        except REFUSED as error:
            raise InputError(described(error)) from error


@contextmanager
def _replaced_argv(argv: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _errors_raised() -> Iterator[None]:
    """Make Hydra raise instead of printing a message of its own and leaving with status 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception while a command runs, so that everything is left tidy."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unknown_option(option: str) -> Problem:
    from hsr_train.config.refusals import nearest_key
    from hsr_train.config.schema import DetectExperiment
    from hsr_train.config.strict import leaves

    name = option.lstrip("-").partition("=")[0].replace("-", "_")
    key = nearest_key(name, [k for k, _, _ in leaves(DetectExperiment)])
    return Problem(option, "", "unknown option; settings are typed KEY=VALUE", f"{key}=VALUE" if key else "--help")
