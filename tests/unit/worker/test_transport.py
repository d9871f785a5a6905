"""The worker's transport, as far as it needs no peer: what it takes for an address."""

from pathlib import Path
from typing import Any

import pytest

from fedmq.fedcore.errors import ConfigError
from fedmq.worker import Worker
from fedmq.worker.transport import check_address


class Nothing:
    """A client app that is never asked."""

    def fit(self, weights: Any, task: Any) -> Any: ...

    def evaluate(self, weights: Any, task: Any) -> Any: ...


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5560", "tcp://", "tcp://host", "tcp://host:0", "tcp://host:65536", "ipc://", ""]
)
def test_what_is_no_address_is_refused_before_anything_is_made(address: str, tmp_path: Path) -> None:
    """No state folder is left behind by a wrong `--connect`."""
    with pytest.raises(ConfigError, match="connect"):
        Worker(Nothing(), connect=address, state=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["tcp://host:5560", "tcp://[::1]:5560", "tcp://a.b.c:65535", "ipc:///tmp/x"]
)
def test_addresses_are_taken(address: str) -> None:
    check_address(address)
