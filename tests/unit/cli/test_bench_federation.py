"""The federation benchmark's arithmetic: from a journal's history to figures, and the bar."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.cli.bench.app import app
from fedmq.cli.bench.federation import (
    Setting,
    bar_ms,
    default_rounds,
    fsync_latency_ms,
    lines,
    rss_anon,
    summarise,
)
from fedmq.fedcore import config
from fedmq.fedcore.errors import ConfigError
from fedmq.worker.client import TaskContext

SMALL = Setting(n=1000, workers=2, rounds=10, mode="sync", durability="os")


def history(*made: float) -> list[dict[str, Any]]:
    """Versions made at these seconds, of two updates each."""
    return [{"created_at": at, "updates": 2 if index else 0} for index, at in enumerate(made)]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_the_tables_are_a_valid_federation(mode: str, durability: str) -> None:
    """With no evaluation, and as many versions as are warmed up with and counted."""
    setting = Setting(
        n=1000, workers=2, rounds=30, mode=mode, durability=durability, encoding="i8", downlink="bf16"
    )
    made = config.parse(setting.tables(), base_dir=".")
    assert made.mode.kind == mode
    assert made.evaluate.every == 0
    assert made.stop.versions == setting.warm_up + setting.rounds == 33
    assert made.storage.durability == durability
    assert (made.aggregate.encoding, made.model.downlink) == ("i8", "bf16")


def test_warm_up_is_not_counted() -> None:
    """The first rounds are slow: processes start."""
    # Version 0 at 0 s, version 1 (the warm-up) at 5 s, then ten rounds: nine of 10 ms, and one of 100 ms.
    made = [0.0, 5.0, *(5.0 + 0.01 * k for k in range(1, 10)), 5.19]
    counts = {"bytes_up": 1100, "bytes_down": 2200}
    found = summarise(SMALL, history(*made), counts, fsync_ms=0.5, rss_anon_peak=25_000_000)
    assert found.rounds == 10
    assert found.round_ms_median == pytest.approx(10)
    assert found.round_ms_p99 == pytest.approx(100)
    assert found.updates_per_s == pytest.approx(20 / 0.19)
    # Ten elevenths of the bytes moved in the 0.19 s after version 1.
    assert found.bytes_up_per_s == pytest.approx(1000 / 0.19)
    assert found.bytes_down_per_s == pytest.approx(2000 / 0.19)
    assert found.rss_anon_peak == 25_000_000


def test_the_bar() -> None:
    """5 ms, and eight fsyncs more where every promise waits for the disk."""
    fsync = Setting(n=1000, workers=2, rounds=10, mode="sync", durability="fsync")
    assert bar_ms(SMALL, 0.5) == 5.0
    assert bar_ms(fsync, 0.5) == 9.0


@pytest.mark.parametrize(("n", "workers", "mode"), [(1001, 2, "sync"), (1000, 3, "sync"), (1000, 2, "async")])
def test_other_settings_have_no_bar(n: int, workers: int, mode: str) -> None:
    """A bar for one setting says nothing about another."""
    assert bar_ms(Setting(n=n, workers=workers, rounds=10, mode=mode, durability="os"), 0.5) is None


def test_figures_for_people() -> None:
    """Each with its unit, and whether the bar was met."""
    made = [0.01 * k for k in range(12)]
    found = summarise(
        SMALL, history(*made), {"bytes_up": 0, "bytes_down": 0}, fsync_ms=0.25, rss_anon_peak=None
    )
    assert found.within_bar is False
    shown = lines(found)
    assert shown[1] == "round       10.00 ms median, 10.00 ms p99, of 10"
    assert "memory      unknown here" in shown
    assert shown[-1] == "bar         ABOVE 5.00 ms for the median round"


def test_large_models_have_fewer_rounds() -> None:
    """So that a run takes seconds."""
    assert [default_rounds(n) for n in (1, 1000, 10**6, 10**8, 10**9)] == [300, 300, 30, 5, 5]


def test_fsync_is_measured_and_leaves_nothing(tmp_path: Path) -> None:
    """On the folder's own disk."""
    taken = fsync_latency_ms(tmp_path, times=3)
    assert len(taken) == 3
    assert all(ms > 0 for ms in taken)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_read_from_proc(tmp_path: Path) -> None:
    """RssAnon, in bytes; unknown where there is no such file or line."""
    status = tmp_path / "status"
    assert rss_anon(status) is None
    status.write_text("Name:\tpython\nState:\tZ (zombie)\n")
    assert rss_anon(status) is None
    status.write_text("VmRSS:\t   44000 kB\nRssAnon:\t   24200 kB\nRssFile:\t   19800 kB\n")
    assert rss_anon(status) == 24200 * 1024


def test_every_fit_makes_another_model() -> None:
    """Else the next version would be one that the worker has, and nothing would be fetched."""
    task = TaskContext(kind="init", config={"n": 3})
    weights = app.initial(task)
    assert weights["weights"].tolist() == [0, 0, 0]
    assert weights["weights"].dtype == np.float32
    fit = app.fit(weights, task)
    assert fit.weights["weights"].tolist() == [1, 0, 0]
    assert fit.examples == 1
    assert app.evaluate(weights, task).metrics == {"loss": 0.0}


@pytest.mark.parametrize("n", [None, 0, -1, "3"])
def test_the_app_needs_a_size(n: object) -> None:
    """From the [task] table."""
    with pytest.raises(ConfigError, match=r"positive integer in \[task\] n"):
        app.initial(TaskContext(kind="init", config={} if n is None else {"n": n}))
