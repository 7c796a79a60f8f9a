"""One run per folder: ``RUN/.lock``, held by the system while the driver lives, with a word about who that is.

A driver that is killed leaves the file but not the lock: the next one takes it over, and reads in it what to clean.
"""

import errno
import fcntl
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from wavalign_ext.config import ConfigError

NAME = ".lock"


class RunLock:
    """Held from :meth:`acquire` to :meth:`release`, or to the end of the process."""

    held: dict[Path, "RunLock"] = {}  # by this process

    def __init__(self, path: Path, descriptor: int, before: dict[str, Any]) -> None:
        self.path, self.descriptor, self.before = path, descriptor, before
        since = datetime.now().isoformat(timespec="seconds")
        self.owner: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        self.note()

    @classmethod
    def acquire(cls, folder: Path) -> "RunLock":
        """Take the folder; ``before`` is what a killed owner wrote, or empty.

        Raises:
            ConfigError: another run has it: who, since when, and what to do.
        """
        path = folder.absolute() / NAME
        if path in cls.held:
            return cls.held[path]
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _read(descriptor)
                os.close(descriptor)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise ConfigError(
                        f"{path} cannot be locked ({error.strerror}): choose a folder on another disk"
                    ) from error
                who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, since {owner.get('since', '?')}"
                raise ConfigError(
                    f"{str(folder)!r} belongs to a run that is under way ({who}): wait for it, or give "
                    "trainer.experiment_name=NAME for one of its own"
                ) from error
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # its owner has just removed it
        cls.held[path] = lock = cls(path, descriptor, _read(descriptor))
        return lock

    def note(self, **facts: Any) -> None:
        """Write down what the next start has to clean if this process is killed."""
        self.owner |= facts
        text = json.dumps(self.owner).encode()
        os.pwrite(self.descriptor, text, 0)
        os.ftruncate(self.descriptor, len(text))

    def release(self) -> None:
        """Give the folder back; a second time does nothing."""
        if self.held.pop(self.path, None) is self:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def _read(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 2**20, 0))
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
