"""What the tests of fedcore share: the kernels, once with each backend that this installation has."""

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest

from fedmq.fedcore import kernels as fedmq_kernels

BACKENDS = ["python"]
if importlib.util.find_spec("fedmq.fedcore.kernels._native") is not None:
    BACKENDS.append("native")


@pytest.fixture(params=BACKENDS, scope="module")
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The kernels module, computing with one backend."""
    with fedmq_kernels.use(request.param):
        yield fedmq_kernels
