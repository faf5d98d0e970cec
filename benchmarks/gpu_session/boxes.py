"""Commands in time boxes: one that takes longer is interrupted, then killed with all that it has started."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

STOPPED = 124
"""The exit status of a command that took too long, as that of `timeout`."""

GRACE = 8.0
"""Seconds in which an interrupted command can still say what it knows, as the tests that were not run."""

_running: list[subprocess.Popen[bytes]] = []


def start(
    command: list[str], log: Path, *, cwd: Path, env: dict[str, str], label: str = ""
) -> subprocess.Popen[bytes]:
    """Runs a command in the background; what it prints is added to `log`, each line behind `label`."""
    with log.open("ab") as file:
        file.write(f"== {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if label else file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **env},
            start_new_session=True,
        )
        if label:
            subprocess.Popen(["sed", "-u", f"s/^/{label}: /"], stdin=process.stdout, stdout=file)
            process.stdout.close()
    _running.append(process)
    return process


def finish(*processes: subprocess.Popen[bytes], seconds: float) -> list[int]:
    """Waits for all of them for at most so long; returns their exit statuses, or STOPPED."""
    try:
        late = _still_running(processes, seconds)
        for process in late:
            process.send_signal(signal.SIGINT)
        _still_running(late, GRACE)
        return [STOPPED if process in late else process.wait() for process in processes]
    finally:
        for process in processes:
            kill(process)


def _still_running(
    processes: Iterable[subprocess.Popen[bytes]], seconds: float
) -> list[subprocess.Popen[bytes]]:
    """After so many seconds, or as soon as there are none."""
    end = time.monotonic() + seconds
    found = []
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            found.append(process)
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the command, if it still runs, and whatever it has left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process in _running:
        _running.remove(process)


def kill_all() -> None:
    """For one who is ended himself."""
    for process in _running[:]:
        kill(process)
