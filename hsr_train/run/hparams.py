"""TensorBoard's view of many runs by what was searched: one session for each, in event files of its own.

Written by `events.EventWriter` from TensorBoard's own protocol buffers, for `tensorboard --logdir` on a sweep's folder.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsr_train.errors import RunError
from hsr_train.run.events import EventWriter

FOLDER = "hparams"


@dataclass(frozen=True)
class Session:
    """One run that has ended.

    Attributes:
        name: Its name, such as a trial's number.
        hparams: Its searched values.
        metrics: Its results; empty if it has none.
        epoch: Its last one.
        has_failed: Whether it ended badly.
        directory: Where it lies.
        started: Unix time.
        ended: Unix time.
    """

    name: str
    hparams: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    epoch: int = 0
    has_failed: bool = False
    directory: str = ""
    started: float = 0.0
    ended: float = 0.0


def write_sessions(
    home: Path, choices: Mapping[str, Sequence[str]], metrics: Sequence[str], sessions: Sequence[Session]
) -> None:
    """Write the sessions that are not there yet into `home/hparams`; each appears whole.

    Args:
        home: The sweep's folder.
        choices: The searched keys, each with all its values if it is a choice of texts.
        metrics: Names of the results.
        sessions: The runs that have ended.

    Raises:
        RunError: The disk refused.
    """
    folder = home / FOLDER
    missing = [s for s in sessions if not (folder / s.name).exists()]
    try:
        if missing and not list(folder.glob("events.*")):
            _write_experiment(folder, choices, metrics)
        for session in missing:
            _write_session(folder, session)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error


def _write_experiment(folder: Path, choices: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # type: ignore[import-untyped]

    infos = []
    for name, values in choices.items():
        info = api_pb2.HParamInfo(name=name, type=api_pb2.DATA_TYPE_STRING if values else api_pb2.DATA_TYPE_FLOAT64)
        for value in values:
            info.domain_discrete.values.add(string_value=value)
        infos.append(info)
    found = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in metrics]
    data = plugin_data_pb2.HParamsPluginData(experiment=api_pb2.Experiment(hparam_infos=infos, metric_infos=found))
    with EventWriter(folder) as writer:
        writer.metadata(metadata.EXPERIMENT_TAG, metadata.create_summary_metadata(data))
    _require_written(writer)


def _write_session(folder: Path, session: Session) -> None:
    """Write a session beside its place and move it there."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_FAILURE if session.has_failed else api_pb2.STATUS_SUCCESS
    start = plugin_data_pb2.SessionStartInfo(
        model_uri=session.directory, group_name=session.name, start_time_secs=session.started
    )
    for name, value in session.hparams.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = str(value)
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=session.ended)
    temporary = folder / f".{session.name}.tmp-{socket.gethostname()}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    with EventWriter(temporary) as writer:
        data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        writer.metadata(metadata.SESSION_START_INFO_TAG, metadata.create_summary_metadata(data))
        for name, value in session.metrics.items():
            if math.isfinite(value):
                writer.scalar(name, value, session.epoch)
        data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        writer.metadata(metadata.SESSION_END_INFO_TAG, metadata.create_summary_metadata(data))
    _require_written(writer)
    try:
        temporary.rename(folder / session.name)
    except OSError as error:
        shutil.rmtree(temporary)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another worker wrote the same meanwhile
            raise


def _require_written(writer: EventWriter) -> None:
    if writer.failure is not None:
        raise RunError(writer.failure)
