"""A command line that runs in this process, and a state folder as a broker leaves it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmq.broker.rows import CounterRow, FreezeRow, MetricsRow, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.state import StateFolder
from fedmq.broker.store.versions import VersionStore
from fedmq.cli import main
from fedmq.fedcore import config, model_file

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedmq(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """``fedmq("init", path)`` gives the exit code, stdout and stderr of the command."""

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    yield run
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not getattr(handler, "of_fedmq", False)]
    logging.getLogger("fedmq").setLevel(logging.NOTSET)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Versions 0 to 2 of a federation called wards: 1 is the most accurate, 2 has the least loss."""
    path = tmp_path / "state"
    model = model_file.from_arrays({"w": np.arange(6, dtype=np.float64).reshape(2, 3), "n": np.array(7)})
    with StateFolder.open(path) as folder:
        folder.settle(config.parse({"federation": {"name": "wards", "state": path}}, base_dir=tmp_path))
        store = VersionStore(folder.versions)
        first = store.write(0, model.chunks)
        journal = Journal.open(folder.journal)
        info = VersionInfo(
            version=0, digest=first.digest, size=first.size, layout=model.layout.digest, n=model.layout.n
        )
        journal.apply([VersionRow(info=info, updates=0, examples=0, seconds=0.0)])
        for version, accuracy, loss in [(1, 0.9, 0.5), (2, 0.8, 0.4)]:
            weights = {"w": np.full((2, 3), float(version)), "n": np.array(7)}
            made = store.write(version, model_file.from_arrays(weights).chunks)
            info = VersionInfo(version=version, digest=made.digest, size=made.size, layout=info.layout, n=6)
            journal.apply(
                [
                    FreezeRow(buffer=version - 1, reason="full"),
                    VersionRow(info=info, updates=10, examples=500, seconds=0.25),
                    MetricsRow(
                        version=version, source="federated", metrics={"accuracy": accuracy, "loss": loss}
                    ),
                    CounterRow(counts={"accepted": 10, "stale": 1}),
                ]
            )
        journal.close()
    return path
