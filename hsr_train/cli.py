"""The command line: every Hydra form, one way in (`config.compose`), one error boundary, one exit status.

0 done, 2 the input is at fault, 1 anything else, 130 after Ctrl-C, 143 after SIGTERM, 128 and the number of another
signal that killed the training. Logs go to standard error; `--cfg` prints only YAML on standard output. `console` is
the command, whose training has a supervisor; `main` called from Python does everything in its own process.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hsr_train.ending import leave, stoppable
from hsr_train.errors import HsrTrainError, InputError, Problem, Terminated

if TYPE_CHECKING:
    from hsr_train.config.schema import Experiment
    from hsr_train.engines.base import Result, Watch

log = logging.getLogger(__name__)

SWEEP_WORDS = ("sweep.", "sweep=", "hydra/sweeper", "hydra.sweeper.", "hydra/launcher", "hydra.launcher.")
"""How words begin that say how to search."""


def console() -> int:
    """Run the command that this process is; return its exit status."""
    status = main(supervise=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # what is done is recorded: no signal makes it undone any more
        signal.signal(number, signal.SIG_IGN)
    if "torch" in sys.modules:
        leave(status)
    return status


def main(argv: Sequence[str] | None = None, *, supervise: bool = False) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; default: those of this process.
        supervise: Whether to train in a child process that may be killed for memory and go on (`supervisor`).

    Returns:
        The exit status. Defects of ours are raised, with their traceback.
    """
    from hsr_train.processes import is_first, rank
    from hsr_train.run.log import configure_console

    configure_console(logging.INFO if is_first() else logging.ERROR)
    try:
        with stoppable():
            _command(list(sys.argv[1:] if argv is None else argv), supervise)
    except HsrTrainError as error:
        if is_first():
            log.error("%s", error)
            _tell_notes(error)
        elif not isinstance(error, InputError):  # the first process has the same input, and says what is wrong
            log.error("Process %d: %s", rank(), error)
        return error.exit_status
    except (Terminated, KeyboardInterrupt) as stop:
        by_term = isinstance(stop, Terminated)
        if is_first():
            log.error("Stopped by %s", "SIGTERM" if by_term else "Ctrl-C")
            _tell_notes(stop)
        return 143 if by_term else 130
    except SystemExit as stop:  # Hydra's --hydra-help and argparse end this way.
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _tell_notes(error: BaseException) -> None:
    """Say what to type next, as the last lines."""
    for note in getattr(error, "__notes__", ()):
        log.info("%s", note)


def _command(argv: list[str], supervise: bool) -> None:
    from hydra._internal.utils import get_args_parser

    from hsr_train.config.overrides import Typed, quote_paths

    if "--version" in argv:  # Hydra would print its own
        print("hsr_train", version("hsr_train"))
        return
    args, unknown = get_args_parser().parse_known_intermixed_args(argv)
    _refuse_options(args, [token for token in unknown if token.startswith("-")], argv)
    multirun = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    overrides = quote_paths(args.overrides, sweep=multirun)
    job = _Job(args, multirun, supervise, argv)
    quoted = quote_paths(argv, sweep=multirun)
    if args.cfg == "job":
        text = _yaml(job.compose(overrides), args.package)
        with _readers_may_leave():
            sys.stdout.write(text)
    elif args.help:
        from hsr_train.config.help import help_text

        text = help_text(overrides, args.config_dir, args.config_name)
        with _readers_may_leave():
            sys.stdout.write(text)
    elif args.cfg or args.hydra_help or args.info or args.shell_completion:
        if args.cfg:
            job.compose(overrides)  # Refuses, and leaves the tier where Hydra finds it.
        with _readers_may_leave():
            _hand_to_hydra(quoted, job)
    elif multirun:
        Typed.parse(overrides)
        _refuse_beside_other_sweepers(overrides)
        _hand_to_hydra(quoted, job)
    else:
        _refuse_sweep_keys(overrides)
        # Hydra hands the job its overrides without those that are Hydra's own.
        job.checked[Typed.parse(overrides).of_task] = job.compose(overrides)
        _hand_to_hydra(quoted, job)


def _refuse_options(args: Namespace, unknown: list[str], argv: list[str]) -> None:
    problems = [_unknown_option(option, argv) for option in unknown]
    verbs = [args.run, args.cfg is not None, args.multirun, args.shell_completion, args.info is not None]
    if sum(verbs) > 1:
        allowed = "only one of --run, --multirun, --cfg, --info and --shell-completion at a time"
        problems.append(Problem("options", "", allowed, "leave all but one out"))
    if args.experimental_rerun is not None:
        remedy = f"resume={args.experimental_rerun}"
        problems.append(Problem("--experimental-rerun", "", "would compose anew from today's files", remedy))
    if args.config_path is not None:
        remedy = f"--config-dir {args.config_path}"
        problems.append(Problem("--config-path", args.config_path, "would hide hsr_train's own files", remedy))
    if problems:
        raise InputError(problems)


def _refuse_sweep_keys(overrides: Sequence[str]) -> None:
    """Refuse what says how to search where nothing is searched."""
    words = [word for word in overrides if word.lstrip("+").startswith(SWEEP_WORDS)]
    if words:
        allowed, remedy = "has no effect without --multirun", "python -m hsr_train --multirun"
        raise InputError([Problem(*word.partition("=")[::2], allowed, f"{remedy} {word} ...") for word in words])


def _refuse_beside_other_sweepers(overrides: Sequence[str]) -> None:
    """Refuse what is typed for our sweeper, and does nothing in another one that is typed, too."""
    sweeper = ["hsr", *(w.partition("=")[2] for w in overrides if w.startswith("hydra/sweeper="))][-1]
    if sweeper == "hsr":
        return
    read = ("sweep.objective=",) if sweeper == "optuna" else ()  # what `_Job._valued` returns
    words = [w for w in overrides if w.lstrip("+").startswith("sweep.") and not w.lstrip("+").startswith(read)]
    allowed = f"has no effect with hydra/sweeper={sweeper}"
    if words:
        raise InputError(
            [Problem(*w.partition("=")[::2], allowed, "leave it out, or leave hydra/sweeper out") for w in words]
        )


def _yaml(experiment: Any, package: str | None) -> str:
    """Return an experiment, or the part of it that --package names, as YAML."""
    import yaml

    from hsr_train.config.saved import dump, plain
    from hsr_train.config.strict import shown

    _log_decisions(experiment)
    if package in (None, "_global_"):
        return dump(experiment)
    part: Any = plain(experiment)
    for name in str(package).split("."):
        if not isinstance(part, dict) or name not in part:
            known = ", ".join(part) if isinstance(part, dict) else "nothing below it"
            raise InputError(Problem("--package", str(package), f"has no {name}; there are {known}"))
        part = part[name]
    if not isinstance(part, (dict, list)):
        return shown(part) + "\n"
    return f"# @package {package}\n" + yaml.safe_dump(part, sort_keys=False, allow_unicode=True, width=1000)


class _Job:
    """What Hydra calls for each job: its experiment comes through our own door, not from Hydra's composition.

    Attributes:
        multirun: Whether it is one of several.
        argv: What was typed.
        supervise: Whether each trains in a process of its own.
        is_divided: Whether it is a cross-validation, which has a run for each fold.
        began: Unix time of the command's start.
        checked: Experiments composed ahead, by their overrides.
        failures: Errors meant for the user, in the order of the jobs. They are kept instead of raised, since Hydra
            would print a line of its own for each.
    """

    def __init__(self, args: Namespace, multirun: bool, supervise: bool, argv: list[str]) -> None:
        self.argv = argv
        self.multirun = multirun
        self.supervise = supervise
        self.is_divided = False
        self.began = time.time()
        self.config_dir: str | None = args.config_dir
        self.task = ["detect", *(word.removeprefix("task=") for word in args.overrides if word.startswith("task="))][-1]
        self.config_name: str | None = args.config_name
        self.checked: dict[tuple[str, ...], Experiment] = {}
        self.failures: list[HsrTrainError] = []

    def compose(self, overrides: Sequence[str]) -> Experiment:
        """Return the checked experiment of some overrides."""
        from hsr_train.config.compose import compose_quietly

        return compose_quietly(overrides, self.config_dir, self.config_name)

    def run(self, experiment: Experiment, watch: Watch | None = None) -> Any:
        """Run a trial of a sweep as any other run; each epoch (of a cross-validation, each fold) is shown."""
        _log_decisions(experiment)
        return self._run(self._adapted(experiment), watch)

    def rehearse(self, experiment: Experiment) -> None:
        """Prepare a trial and do no more, where trials run."""
        self._gpus(experiment)
        self._perform(_rehearse, experiment)

    def __call__(self, _: Any) -> Any:
        """Run the job whose overrides Hydra holds: the only one, or one of a sweeper that is not ours."""
        from hydra.core.hydra_config import HydraConfig

        overrides = HydraConfig.get().overrides.task
        try:
            experiment = self.checked.get(tuple(overrides)) or self.compose(overrides)
            _log_decisions(experiment)
            experiment = self._adapted(experiment)
            result: Result = self._run(experiment)
            return self._valued(experiment, result) if self.multirun else result
        except HsrTrainError as error:
            if self.multirun:  # The next job starts; the grid ends with a summary.
                log.error("The job with %s failed: %s", " ".join(overrides), error)
            self.failures.append(error)
            return error

    def _valued(self, experiment: Experiment, result: Result) -> Any:
        """Return what other sweepers want of a job: its objective, or a list of several; what has none, the result."""
        from hsr_train.sweep.objectives import chosen, values_of

        if experiment.mode != "train":
            return result
        names, _, problems = chosen(experiment)
        if problems:
            raise InputError(problems)
        values = values_of(names, {"metrics": result.metrics, "latency_ms": result.latency_ms})
        return values[0] if len(values) == 1 else values

    def _run(self, experiment: Experiment, watch: Watch | None = None) -> Any:
        gpus = self._gpus(experiment)
        if gpus and experiment.mode == "train" and self.supervise:
            return self._launch(gpus)
        if experiment.is_cross_validation:
            from hsr_train.cross_validation import cross_validate

            self.is_divided = True
            return cross_validate(experiment, self._perform, self.again, watch)
        return self._perform(partial(_execute, watch=watch), experiment)

    def _gpus(self, experiment: Experiment) -> list[int]:
        """Return the GPUs that a run shares among processes; refuse what several processes cannot do."""
        from hsr_train.launcher import gpus_to_share
        from hsr_train.processes import require_fit

        gpus = gpus_to_share(experiment) if experiment.mode in ("train", "check") else []
        require_fit(experiment, multirun=self.multirun, gpus=gpus)
        return gpus

    def _launch(self, gpus: list[int]) -> None:
        """Start this command once for each GPU; leave as they end, which have said what there is to say."""
        from hsr_train import hardware
        from hsr_train.launcher import launch, require_there

        require_there(hardware.detect(), gpus)
        log.info("train.device=%s: a process for each GPU", gpus)
        status = launch([sys.executable, "-m", "hsr_train", *self.argv], len(gpus))
        if status:
            raise SystemExit(status)

    def _perform(self, function: Callable[[Any], Any], experiment: Experiment) -> Any:
        """Call a function, where it can be had in a process that may be killed for memory and go on."""
        is_alone = not self.multirun and not self.is_divided
        experiment.origin.started = self.began if is_alone else time.time()
        if not self.supervise:
            return function(experiment)
        from hsr_train.supervisor import supervised

        return supervised(function, experiment, self.again)

    def again(self, overrides: list[str]) -> Experiment:
        """Return the experiment that goes on with a job's run."""
        from hsr_train.config.overrides import quote_paths

        return self._adapted(self.compose(quote_paths(overrides)))

    def _adapted(self, experiment: Experiment) -> Experiment:
        if self.multirun and experiment.tensorboard.serve == "auto":
            experiment.tensorboard.serve = False  # A server for each of many jobs helps nobody.
        return experiment


def _execute(experiment: Experiment, watch: Watch | None) -> Result:
    import hsr_train

    return hsr_train.execute(experiment, watch)  # loads what is heavy


def _rehearse(experiment: Experiment) -> None:
    from hsr_train.cross_validation import rehearse

    rehearse(experiment)


def _hand_to_hydra(argv: list[str], job: _Job) -> None:
    """Let Hydra run the job or the grid of jobs, print its help, or complete a word."""
    import hydra
    from hydra.core.plugins import Plugins

    from hsr_train.config import registration
    from hsr_train.config.paths import CONF_DIR
    from hsr_train.config.refusals import REFUSED, describe_error

    if job.multirun:
        from hsr_train.sweep.sweeper import HsrSweeper

        Plugins.instance().register(HsrSweeper)
    registration.register()
    with _replaced_argv(argv), _errors_raised():
        try:
            hydra.main(config_path=str(CONF_DIR), config_name=registration.primary(job.config_name, job.task))(job)()
        except REFUSED as error:
            raise InputError(describe_error(error)) from error
    if job.failures:
        raise job.failures[0]


@contextmanager
def _readers_may_leave() -> Iterator[None]:
    """Print for `head` and the like, which close the pipe when they have seen enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def _log_decisions(experiment: Experiment) -> None:
    from hsr_train.config.compose import log_decisions

    log_decisions(experiment)


def _unknown_option(option: str, argv: list[str]) -> Problem:
    """Point from an option of other programs (`--epochs 5`) to the setting that does it."""
    from hsr_train.config.names import OTHER_OPTIONS, nearest_key
    from hsr_train.config.paths import CONF_DIR

    name, sign, value = option.partition("=")
    following = argv[argv.index(option) + 1 :][:1]
    if not sign and following and not following[0].startswith("-"):
        value = following[0]
    word = name.strip("-").replace("-", "_")
    key = word if (CONF_DIR / word).is_dir() else nearest_key(word)
    form = OTHER_OPTIONS.get(word) or (f"{key}=VALUE" if key else "python -m hsr_train --help")
    return Problem(name, "", "unknown option; settings are typed KEY=VALUE", form.replace("VALUE", value or "VALUE"))
