"""One tree of errors: what a caller may catch, and what a shell sees."""

import re
from types import ModuleType

import pytest

from fedmq.fedcore import errors
from fedmq.fedcore.errors import FedmqError, ProtocolError


def classes(module: ModuleType) -> list[type[Exception]]:
    return [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Exception)]


def drawn(docstring: str) -> list[tuple[int, str]]:
    """(depth, name) of each line of the tree in a docstring."""
    lines = re.findall(r"^((?:[ │├└─]{4})+)([A-Z]\w+)", docstring, re.MULTILINE)
    return [(len(indent) // 4 - 1, name) for indent, name in lines]


def grown(root: type[Exception], depth: int = 0) -> list[tuple[int, str]]:
    """(depth, name) of each class below `root`, in the order of definition."""
    here = [c for c in root.__subclasses__() if c.__module__ == errors.__name__]
    return [(depth, root.__name__)] + [line for child in here for line in grown(child, depth + 1)]


def test_the_tree_is_as_drawn() -> None:
    """The module's docstring shows every class, under its parent."""
    assert errors.__doc__ is not None
    assert drawn(errors.__doc__) == grown(FedmqError)


def test_everything_is_a_fedmq_error() -> None:
    """One `except FedmqError` catches all that fedmq raises on purpose."""
    assert all(issubclass(c, FedmqError) for c in classes(errors))


def test_exit_codes_are_distinct() -> None:
    """One for each branch; a twig exits as its branch does."""
    branches = {
        c.__name__: c.exit_code for c in FedmqError.__subclasses__() if c.__module__ == errors.__name__
    }
    assert len(set(branches.values())) == len(branches)
    assert FedmqError.exit_code not in branches.values()


@pytest.mark.parametrize("error", classes(errors))
def test_exit_codes_mean_failure(error: type[FedmqError]) -> None:
    """Never 0, and none that a shell uses itself (126 and above)."""
    assert 0 < error.exit_code < 126
    parent = error.__bases__[0]
    if issubclass(parent, FedmqError) and parent is not FedmqError:
        assert error.exit_code == parent.exit_code


def test_a_protocol_error_has_a_code() -> None:
    """`malformed` unless said otherwise: what the peer's ERROR carries."""
    assert ProtocolError("why").code == "malformed"
    assert ProtocolError("why", code="forbidden").code == "forbidden"
    assert str(ProtocolError("why", code="forbidden")) == "why"
