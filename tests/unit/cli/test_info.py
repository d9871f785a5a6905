"""`fedmq info`: what a bug report needs."""

import json

from fedmq import __version__
from fedmq.fedcore import kernels


def test_facts_as_json(fedmq) -> None:
    """Versions, the kernels in use, the platform."""
    code, out, _ = fedmq("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["fedmq"] == __version__
    assert facts["kernels"]["backend"] == kernels.backend
    assert set(facts["extras"]) == {"broker", "torch", "sklearn", "privacy", "bench"}


def test_facts_as_lines(fedmq) -> None:
    """The backend stands on a line of its own."""
    lines = fedmq("info")[1].splitlines()
    assert any(line.startswith("kernels") and kernels.backend in line for line in lines)
