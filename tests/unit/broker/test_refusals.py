"""An error of the disk says which file, what the system said, and what to do; a lack of descriptors is waited out."""

import errno
import os
from pathlib import Path

import pytest

from fedmq.broker.store.refusals import is_exhausted, patiently, unwritten
from fedmq.fedcore.errors import StateError


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room and start the broker again"),
        (errno.EDQUOT, "make room and start the broker again"),
        (errno.EROFS, "make the state folder writable"),
        (errno.EACCES, "make the state folder writable"),
        (errno.EMFILE, "raise the limit on open files"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
    ids=errno.errorcode.get,
)
def test_what_to_do(number: int, advice: str) -> None:
    """One line, with the file, the system's words and the advice."""
    error = unwritten(Path("state/spool/ab"), OSError(number, os.strerror(number)))
    assert str(error).startswith(f"state/spool/ab cannot be written: {os.strerror(number)}")
    assert advice in str(error)
    assert "\n" not in str(error)


def test_a_descriptor_is_waited_for() -> None:
    """The last one was taken by a connection that is about to be cut: the file opens a moment later."""
    refusals = [errno.EMFILE, errno.ENFILE, errno.EMFILE]
    slept: list[float] = []

    def open_file() -> str:
        if refusals:
            raise OSError(number := refusals.pop(), os.strerror(number))
        return "open"

    assert patiently(open_file, slept.append) == "open"
    assert len(slept) == 3


def test_nothing_else_is_waited_for() -> None:
    """A full disk stays full."""

    def open_file() -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sleep(_: float) -> None:
        pytest.fail("slept")

    with pytest.raises(OSError, match="No space left"):
        patiently(open_file, sleep)


@pytest.mark.parametrize(("number", "exhausted"), [(errno.EMFILE, True), (errno.ENOENT, False)])
def test_a_lack_of_descriptors_is_told_apart(number: int, exhausted: bool) -> None:
    """A file that could not be opened for that is there all the same."""
    error = StateError("cannot be read")
    error.__cause__ = OSError(number, os.strerror(number))
    assert is_exhausted(error) is exhausted
    assert not is_exhausted(StateError("cannot be read"))
