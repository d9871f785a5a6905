"""The worker's ledger: what its records have paid, on disk before they pay it.

    STATE/app/privacy.json    {"format":1,"spent":[{"noise_multiplier":1.1,"sampling_rate":0.1,"steps":40}]}
    STATE/app/privacy.secret  32 random bytes, from which the coins of gradient sums come (`sampling`)

Rules that hold here:

- A task's steps are written, fsynced and renamed into place before the first of them reads a record. So whatever
  leaves this worker was counted, wherever its process dies; what died on the way counts as spent, too.
- Nothing is ever given back: also a task that was cancelled, or whose update was refused, keeps its steps.
- The ledger is about the *data*, and so goes on from federation to federation. It lasts as long as the state folder,
  which one process at a time holds (`..state`); without such a folder there is no private training.
- A ledger that cannot be read is a `StateError`. It is never taken for an empty one.
- It cannot know of steps that another copy of the folder took, or that an older backup of it has forgotten. Who
  restores a folder must count these himself: raise ``steps`` in the file by what may have happened since.
"""

import contextlib
import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from fedmq.fedcore.apps import TaskContext
from fedmq.fedcore.errors import PrivacyError, StateError
from fedmq.fedcore.privacy.accounting import Spend

from ..state import write_file
from .plan import LocalPrivacy, merged

__all__ = ["LEDGER", "SECRET", "SECRET_BYTES", "Ledger", "secret", "state_of"]

LEDGER: Final = "privacy.json"
SECRET: Final = "privacy.secret"
SECRET_BYTES: Final = 32


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ledger's file."""

    format: Literal[1]
    spent: list[Spend]


class Ledger:
    """What this worker's records have paid so far.

    Parameters
    ----------
    folder : Path
        The app's own, ``task.state``.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER

    def spent(self) -> list[Spend]:
        """Steps so far, those of equal noise together.

        Raises
        ------
        StateError
            When the file cannot be read.
        """
        try:
            return merged(msgspec.json.decode(self._file.read_bytes(), type=_File).spent)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, PrivacyError) as error:
            raise StateError(
                f"the privacy ledger {self._file} cannot be read: {error}; restore it, and add what was spent since. "
                "Deleting it would spend its budget once more"
            ) from error

    def commit(self, plan: LocalPrivacy) -> None:
        """Count one task of a calibrated plan as done, durably.

        Raises
        ------
        BudgetExhausted
            When it would pass the cap. Nothing is then written.
        StateError
            When the ledger cannot be read or written. The task must not go on.
        """
        total = merged([*self.spent(), plan.spend])
        plan.check_affords(total)
        try:
            write_file(self._file, msgspec.json.encode(_File(1, total)) + b"\n", fsync=True)
        except OSError as error:
            raise StateError(
                f"the privacy ledger {self._file} cannot be written: {error.strerror}"
            ) from error


def secret(folder: Path) -> bytes:
    """This worker's secret, drawn by the operating system at first use.

    Raises
    ------
    StateError
        When it is damaged, or cannot be written.
    """
    path = folder / SECRET
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.read_bytes()
            if len(found) != SECRET_BYTES:
                raise StateError(f"{path} holds {len(found)} bytes, expected {SECRET_BYTES}; restore it")
            return found
        drawn = os.urandom(SECRET_BYTES)
        write_file(path, drawn, fsync=True)
        return drawn
    except OSError as error:
        raise StateError(f"{path} cannot be used: {error.strerror}") from error


def state_of(task: TaskContext) -> Path:
    """The app's folder that a task names.

    Raises
    ------
    PrivacyError
        When there is none.
    """
    if task.state is None:
        raise PrivacyError(
            "private training needs a state folder, or what it spends would be forgotten with the process; "
            "give the worker one: --state FOLDER, or Worker(state=…)"
        )
    return task.state
