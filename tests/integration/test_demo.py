"""`fedmq demo` as it is typed, and the promise that a synchronous run gives the same model, whatever happens to it."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmq.broker.store.history import History
from fedmq.cli.demo.settings import settings
from fedmq.cli.processes import LocalFederation
from fedmq.fedcore.errors import ProcessError

APP = "fedmq.cli.demo.app:app"
WORKERS = 3
VERSIONS = 12
KEYS = {
    *("data", "mode", "partition", "app", "seed", "workers", "versions", "updates", "seconds"),
    *("bytes_up", "bytes_down", "accuracy", "epsilon", "delta", "kernels", "model_digest"),
}
CHOSEN = settings("digits", "sync", train_size=1438, workers=WORKERS)


def federation(folder: Path, **environment: str) -> LocalFederation:
    """The demo's synchronous federation, shortened."""
    tables = CHOSEN.federation()
    return LocalFederation(folder, tables | {"stop": {"versions": VERSIONS}}, environment=environment)


def start(running: LocalFederation) -> None:
    running.start_broker()
    running.start_workers(APP, [CHOSEN.node(index) for index in range(WORKERS)])


def at_version(running: LocalFederation, version: int) -> None:
    """Wait until a version is made."""
    while running.check():
        status = running.status()
        if status is not None and (status["version"] or 0) >= version:
            return
    raise AssertionError(f"it ended before version {version}")


def outcome(running: LocalFederation) -> tuple[str, int, int]:
    """The last version's digest, how many versions there are, and how many updates are in them."""
    with History.open(running.state / "journal.db") as journal:
        summary, versions = journal.summary(), journal.history()
    return summary["digest"], summary["version"], sum(row["updates"] for row in versions)


def children_of(folder: Path) -> list[int]:
    """Processes that work in a folder: the children of a federation there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = (process / "cwd").readlink()
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
        if where.is_relative_to(folder):
            found.append(int(process.name))
    return found


def demo(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fedmq.cli.main", "demo", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, int]:
    """What an undisturbed run gives."""
    with federation(tmp_path_factory.mktemp("undisturbed")) as running:
        start(running)
        running.wait(lambda status: None)
    found = outcome(running)
    assert found[1:] == (VERSIONS, VERSIONS * WORKERS)
    return found


@pytest.mark.parametrize(
    "environment",
    [{"FEDMQ_KERNELS": "python"}, {"FEDMQ_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2"}],
    ids=["python kernels", "more threads"],
)
def test_the_same_model_from_other_kernels(
    tmp_path: Path, expected: tuple[str, int, int], environment: dict[str, str]
) -> None:
    """Bit for bit, whichever backend and however many threads."""
    with federation(tmp_path, **environment) as running:
        start(running)
        running.wait(lambda status: None)
    assert outcome(running) == expected


def test_the_same_model_when_the_broker_dies(tmp_path: Path, expected: tuple[str, int, int]) -> None:
    """Killed at once, stopped in order, killed again: workers come back, and nothing is lost or counted twice."""
    with federation(tmp_path) as running:
        start(running)
        for version, number in ((2, signal.SIGKILL), (5, signal.SIGTERM), (8, signal.SIGKILL)):
            at_version(running, version)
            assert running.broker is not None
            running.broker.send(number)
            assert running.broker.join(30)
            running.start_broker()
        running.wait(lambda status: None)
    assert outcome(running) == expected


def test_the_same_model_when_a_worker_dies(tmp_path: Path, expected: tuple[str, int, int]) -> None:
    """Started again under its name, it gets the same task again."""
    with federation(tmp_path) as running:
        start(running)
        at_version(running, 3)
        running.workers[0].kill()
        running.workers[0] = running.workers[0].again()
        running.wait(lambda status: None)
    assert outcome(running) == expected


def test_the_demo(tmp_path: Path) -> None:
    """Three arms with the accuracy that is promised, a document with its keys, and nothing left behind."""
    figures = tmp_path / "figures.json"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = demo("--json", str(figures), env={**os.environ, "TMPDIR": str(scratch)})
    out, err = process.communicate()
    assert process.returncode == 0, err
    document = json.loads(figures.read_text())
    assert set(document) == KEYS
    assert document["workers"] == 5
    assert document["updates"] >= document["versions"] > 0
    accuracy = document["accuracy"]
    assert accuracy["centralized"] >= 0.95
    assert accuracy["federated"] >= accuracy["centralized"] - 0.03
    assert accuracy["federated_dp"] >= 0.85
    assert 2.9 < document["epsilon"] <= 3.0
    assert document["seconds"] < 90
    assert bytes.fromhex(document["model_digest"])
    for name in ("centralised", "federated", "with privacy"):
        assert f"\n{name}" in out
        assert f"{name}: " in err
    assert "ε = " in out
    assert "Trusted: the broker" in out
    assert list(scratch.iterdir()) == []


def reached(state: Path, version: int) -> bool:
    """Whether a federation has come to this version."""
    made = (int(file.name[1:9]) for file in (state / "versions").glob("v*.safetensors"))
    return max(made, default=-1) >= version


def test_the_demo_goes_on_when_its_broker_dies(tmp_path: Path) -> None:
    """Killed, and stopped in order, by somebody else: started again, and the model is that of a quiet run."""
    digests = []
    for name, signals in (("quiet", ()), ("disturbed", (signal.SIGKILL, signal.SIGTERM))):
        figures, state = tmp_path / f"{name}.json", tmp_path / name / "federated" / "state"
        process = demo("--mode", "sync", "--state", str(tmp_path / name), "--json", str(figures))
        try:
            for version, number in zip((3, 9), signals, strict=False):
                wait_for(functools.partial(reached, state, version))
                os.kill(int((state / "lock").read_text()), number)
            _, err = process.communicate(timeout=100)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert err.count("is started again") == len(signals)
        digests.append(json.loads(figures.read_text())["model_digest"])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_demo(tmp_path: Path, number: signal.Signals) -> None:
    """Interrupted, terminated or killed: its children end with it."""
    folder = tmp_path / "state"
    process = demo("--state", str(folder))
    try:
        wait_for(lambda: len(children_of(folder / "federated")) == 6)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    wait_for(lambda: not children_of(folder), 20)
    assert "Traceback" not in err
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert process.returncode == expected


def test_a_worker_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    """Its own last line is the reason; the others are ended."""
    with federation(tmp_path) as running:
        running.start_broker()
        with pytest.raises(ProcessError, match=r"^worker-2 ended with exit code \d+: .*shard"):
            running.start_workers(APP, [{"shard": "1/3"}, {"shard": "7/3"}])
    assert children_of(tmp_path) == []


def test_a_worker_that_is_killed_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the end of its log, which says how far it was."""
    with federation(tmp_path) as running:
        start(running)
        at_version(running, 1)
        running.workers[1].send(signal.SIGKILL)
        with pytest.raises(
            ProcessError, match=r"^worker-2 was killed by SIGKILL; the end of its log is above$"
        ):
            running.wait(lambda status: None)
    assert "  worker-2 | " in capsys.readouterr().err
    assert children_of(tmp_path) == []


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    """--state wants a new one."""
    (tmp_path / "mine").write_text("mine")
    process = demo("--state", str(tmp_path))
    _, err = process.communicate()
    assert process.returncode == 2
    assert err == f"fedmq: --state {tmp_path} is not empty; name a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
