"""Which program a worker's command means, and why it cannot be started."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator

TRANSIENT_ERRORS = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EINTR, errno.ETXTBSY}
)
"""The system was out of something, or somebody was writing the program's file: later it may work."""


def find_program(name: str, cwd: str) -> str:
    """The absolute path of the program ``name``.

    A name without a slash is looked for on this process's ``PATH``; a path counts from ``cwd``, in which the
    program is to run. Reads directories, so it may block.

    Raises:
        FileNotFoundError: there is none; the message says where it was looked for, and what is nearest.
        NotADirectoryError: ``cwd`` is no directory.
        PermissionError: what is there cannot be run.
    """
    if not os.path.isdir(cwd):
        what = "is not a directory" if os.path.exists(cwd) else "does not exist"
        raise NotADirectoryError(f"its working directory {cwd!r} {what}")
    if not name:
        raise FileNotFoundError("the program's name is empty")
    if os.sep in name:
        path = os.path.join(cwd, name)
        _check_runnable(path)
        return os.path.abspath(path)
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(_not_on_path(name, cwd))
    return os.path.abspath(path)


def _check_runnable(path: str) -> None:
    if not os.path.lexists(path):
        folder, name = os.path.split(path)
        raise FileNotFoundError(f"there is no file {path!r}{_nearest(name, _names_in(folder))}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path!r} is a link to {os.readlink(path)!r}, which does not exist")
    if os.path.isdir(path):
        raise PermissionError(f"{path!r} is a directory")
    if not os.path.isfile(path):
        raise PermissionError(f"{path!r} is not a regular file")
    if not os.access(path, os.X_OK):
        raise PermissionError(f"{path!r} is not executable: `chmod +x` it, or name its interpreter first")


def _not_on_path(name: str, cwd: str) -> str:
    search_path = os.environ.get("PATH", os.defpath)
    folders = [folder for folder in search_path.split(os.pathsep) if folder]
    said = f"{name!r} was not found on PATH ({search_path})"
    for folder in folders:
        if os.path.isfile(there := os.path.join(folder, name)):
            return f"{said}; {there!r} is not executable"
    if os.path.isfile(os.path.join(cwd, name)):
        return f"{said}; for the file in its working directory write {os.path.join('.', name)!r}"
    return said + _nearest(name, (entry for folder in folders for entry in _names_in(folder)))


def _names_in(folder: str) -> Iterator[str]:
    try:
        yield from os.listdir(folder)
    except OSError:
        return


def _nearest(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, set(candidates), n=1, cutoff=0.7)
    return f"; the nearest name there is {close[0]!r}" if close else ""


def why_not_started(exc: OSError | ValueError, program: str) -> str:
    """What to tell a person when the system refused to run ``program``, which is an executable file."""
    if isinstance(exc, FileNotFoundError):
        interpreter = _interpreter(program)
        if interpreter and not os.path.exists(interpreter):
            return f"{program!r} asks for the interpreter {interpreter!r} in its first line; there is none"
    if isinstance(exc, OSError) and exc.errno == errno.ENOEXEC:
        return f"{program!r} is neither a program for this machine nor a script with a #! line"
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename or program!r}: {exc.strerror}"
    return f"{program!r}: {exc}"


def _interpreter(program: str) -> str:
    try:
        with open(program, "rb") as file:
            first_line = file.readline(256)
    except OSError:
        return ""
    words = first_line[2:].split() if first_line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""
