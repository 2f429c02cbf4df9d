"""Keeps a Python process away from the network and, if asked, records what it does to the machine.

Python imports a module of this name at its start; `conftest.py` puts this folder on PYTHONPATH, so that it holds in
every process that a test starts, and installs the hook in the test process itself.

With HSR_TRAIN_TEST_EVENTS=FILE each network attempt, started program, and file or folder opened for writing, made,
renamed or removed becomes a line `event<TAB>detail` of that file. Forked children write to it as well.
"""

import os
import sys

_LOCAL = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"}
# Which arguments are paths, and which hold the folder (a descriptor, or -1) that each is relative to.
_FILES = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class NetworkRefusedError(OSError):
    """A test tried to leave the machine."""


def host_of(event, args):
    """Return the host that a network event is about, or None for a socket of this machine's own kind."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return args[0]
    address = args[1]
    return address[0] if isinstance(address, tuple) else None


def whole_path(path, folder):
    """Return a path with the folder that it is relative to, where that was given as a descriptor."""
    base = os.readlink(f"/proc/self/fd/{folder}") if folder != -1 else ""  # noqa: PTH115 (pathlib at every start?)
    return os.path.join(base, os.fsdecode(path))  # noqa: PTH118


def install(events_path=None):
    """Refuse every connection that leaves this machine, from now on and for good; optionally record events."""
    descriptor = None
    if events_path:
        descriptor = os.open(events_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def record(event, detail):
        if descriptor is not None:
            os.write(descriptor, f"{event}\t{detail}\n".encode("utf-8", "backslashreplace"))

    def hook(event, args):
        if event in _NETWORK:
            host = host_of(event, args)
            host = host.decode() if isinstance(host, bytes) else host
            if host is not None and host not in _LOCAL:
                record(event, host)
                raise NetworkRefusedError(f"tests stay on this machine: {event} {host}")
        elif descriptor is None:
            return
        elif event in _PROGRAMS:
            record(event, args)
        elif event in _FILES:
            for path, folder in _FILES[event]:
                record(event, whole_path(args[path], args[folder]))
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING and not isinstance(args[0], int):
            record(event, os.fsdecode(args[0]) if args[0] is not None else args)

    sys.addaudithook(hook)


if __name__ == "sitecustomize":
    install(os.environ.get("HSR_TRAIN_TEST_EVENTS"))
