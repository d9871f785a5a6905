"""An asynchronous run is what its journal says: recomputed by `fedmq verify`, and by hand from the formulas.

The recomputation by hand shares no code with the kernels: whole numbers and fractions of Python for the sum,
numpy's int64, float64 and float32 for the rest, straight from "Exact sums" and the optimizers' formulas.
"""

import math
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmq.fedcore.errors import StateError

from .federation import Federation, Tables

Row = dict[str, Any]
HINGE = {"staleness": "hinge", "hinge_slope": 3.0, "hinge_threshold": 1}


def decoded(payload: bytes, encoding: str) -> NDArray[np.float64]:
    """The values of a payload, as the protocol's page defines them."""
    match encoding:
        case "f32":
            return np.frombuffer(payload, "<f4").astype(np.float64)
        case "f16":
            return np.frombuffer(payload, "<f2").astype(np.float64)
        case "bf16":
            return (np.frombuffer(payload, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    blocks = []
    for start in range(0, len(payload), 4 + 1024):
        scale = np.frombuffer(payload, "<f4", 1, start)[0]
        q = np.frombuffer(payload[start + 4 : start + 4 + 1024], "i1")
        blocks.append((scale * q.astype(np.float32)).astype(np.float64))
    return np.concatenate(blocks)


def exact_squares(values: NDArray[np.float64]) -> float:
    """‖x‖²: squares of float32 values are exact in float64, and fsum rounds once."""
    return math.fsum((values * values).tolist())


def frac_bits(bounds: list[float]) -> int:
    """The largest F ≤ 100 with B·2^F < 2^51 and K·B·2^F < 2^62, tried one after the other."""
    most, k = Fraction(max(bounds)), len(bounds)
    if not most:
        return 0
    return next(
        f
        for f in range(100, -201, -1)
        if most * Fraction(2) ** f < 2**51 and k * most * Fraction(2) ** f < 2**62
    )


def staleness(mode: Row, tau: int) -> float:
    """s(τ)."""
    match mode.get("staleness", "polynomial"):
        case "constant":
            return 1.0
        case "hinge":
            return (
                1.0
                if tau <= mode["hinge_threshold"]
                else 1 / (mode["hinge_slope"] * (tau - mode["hinge_threshold"]) + 1)
            )
    return float((1 + tau) ** -mode.get("exponent", 0.5))


def combined(rows: list[Row], tables: Tables) -> tuple[NDArray[np.float32], int, float]:
    """d = Σ wΔ / D of one buffer, F, and D; with every claim of its accept rows checked on the way."""
    by_examples = tables["aggregate"]["weight"] == "examples"
    for row in rows:
        mass = row["examples"] if by_examples else 1
        assert row["weight"] == max(round(mass * staleness(tables["mode"], row["tau"]) * 2**20), 1) / 2**20
        # A float64 sum of n squares is this near, whatever its order.
        squares = exact_squares(decoded(row["payload"], row["encoding"]))
        assert row["norm"] ** 2 == pytest.approx(squares, rel=1e-12)
    f = frac_bits([row["weight"] * row["norm"] for row in rows])
    total = [0] * len(decoded(rows[0]["payload"], rows[0]["encoding"]))
    for row in rows:
        scale = row["weight"] * 2.0**f
        scaled = decoded(row["payload"], row["encoding"]) * scale
        assert np.abs(scaled).max() < 2**51
        # round(): ties to even, into whole numbers without an end.
        total = [have + round(q) for have, q in zip(total, scaled.tolist(), strict=True)]
    assert all(abs(q) < 2**62 for q in total)
    d = float(sum(row["examples"] for row in rows) if by_examples else len(rows))
    mean = np.array(total, np.int64).astype(np.float64) / (d * 2.0**f)
    return mean.astype(np.float32), f, d


def stepped(
    w: NDArray[np.float32], v: NDArray[np.float32], d: NDArray[np.float32], optimizer: Row
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One step of the server optimizer: float64 arithmetic, each result rounded to float32 once."""
    w64, d64 = w.astype(np.float64), d.astype(np.float64)
    if optimizer["kind"] == "sgd":
        return (w64 + optimizer["lr"] * d64).astype(np.float32), v
    v64 = optimizer["beta"] * v.astype(np.float64) + d64
    return (w64 + optimizer["lr"] * v64).astype(np.float32), v64.astype(np.float32)


@pytest.mark.parametrize(
    ("encoding", "n", "mode", "weight", "optimizer"),
    [
        ("f32", 1000, {"staleness": "polynomial"}, "examples", {"kind": "momentum", "lr": 0.7, "beta": 0.8}),
        ("f32", 20_000, HINGE, "uniform", {"kind": "sgd", "lr": 1.0}),
        ("i8", 2500, {"staleness": "polynomial", "exponent": 0.3}, "examples", {"kind": "sgd", "lr": 0.3}),
        ("bf16", 1000, {"staleness": "constant"}, "uniform", {"kind": "momentum", "lr": 1.0, "beta": 0.9}),
    ],
    ids=["momentum f32", "spooled f32", "i8", "bf16"],
)  # fmt: skip
def test_a_run_equals_its_recomputation(
    tmp_path: Path, encoding: str, n: int, mode: Row, weight: str, optimizer: Row
) -> None:
    """Every version's file, bit for bit: of `fedmq verify`, and of Python's whole numbers."""
    tables: Tables = {
        "mode": {"kind": "async", "buffer": 4, "concurrency": 8, **mode},
        "aggregate": {"encoding": encoding, "weight": weight},
        "optimizer": optimizer,
        "storage": {"keep_payloads": True},
        "stop": {"versions": 12},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with f.together():
            for number, delay in ((1, 0.004), (2, 0.01), (3, 0.04)):
                f.start_worker(f"w{number}", number=number, n=n, delay=delay)
        f.finish()
        said = f.cli("verify").splitlines()
        assert said[-1] == "12 versions recomputed, all with the same bytes"
        assert [line.split()[-1] for line in said[:-1]] == [row["digest"] for row in f.history()[1:]]

        made = {
            row[0]: row[1:]
            for row in f.query("SELECT version, frac_bits, denominator, updates FROM versions")
        }
        w = f.weights(0)
        v = np.zeros_like(w)
        taus = set()
        for version in range(1, 13):
            rows = f.updates(version)
            taus |= {row["tau"] for row in rows}
            assert all(row["tau"] == version - 1 - row["base"] for row in rows)
            d, bits, denominator = combined(rows, tables)
            w, v = stepped(w, v, d, optimizer)
            assert made[version] == (bits, denominator, 4)
            assert w.tobytes() == f.weights(version).tobytes(), f"version {version}"
        assert len(taus) > 1, "nothing was stale: this shows little"


def test_fedasync_equals_its_recomputation(tmp_path: Path) -> None:
    """Each version is (1 − α_τ) w + α_τ x, with the base that its row names; killed and started again in between."""
    tables: Tables = {
        "mode": {"kind": "async", "buffer": 1, "concurrency": 8, "max_staleness": 6},
        "aggregate": {"weight": "examples"},
        "optimizer": {"kind": "fedasync", "alpha": 0.6},
        "storage": {"keep_payloads": True},
        "stop": {"versions": 16},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with f.together():
            for number, delay in ((1, 0.004), (2, 0.01), (3, 0.04)):
                f.start_worker(f"w{number}", number=number, n=20_000, delay=delay)
        f.wait_for_version(4)
        f.stop_broker(signal.SIGKILL)
        f.start_broker()
        f.finish()
        assert f.cli("verify").splitlines()[-1] == "16 versions recomputed, all with the same bytes"
        taus = set()
        for version in range(1, 17):
            (row,) = f.updates(version)
            taus.add(row["tau"])
            d, _, denominator = combined([row], tables)
            w, base = (f.weights(v).astype(np.float64) for v in (version - 1, row["base"]))
            share = row["weight"] / denominator
            mixed = (w + 0.6 * (share * (base - w) + d)).astype(np.float32)
            assert mixed.tobytes() == f.weights(version).tobytes(), f"version {version}"
            a, x = 0.6 * share, base + decoded(row["payload"], row["encoding"])
            np.testing.assert_allclose(mixed, (1 - a) * w + a * x, rtol=0, atol=1e-5)
        assert len(taus) > 1, "nothing was stale: this shows little"


ROBUST: list[Any] = [
    "median",
    {"kind": "trimmed_mean", "trim": 0.34},
    {"kind": "krum", "byzantine": 1},
    {"kind": "bulyan", "byzantine": 1},
    "geometric_median",
    {"kind": "centered_clipping", "radius": 0.5, "iterations": 2},
    {"kind": "norm_bound", "max_norm": 0.5},
    "rule_of_my_own:Vote",
]
OWN_RULE = """
import numpy as np
from fedmq.fedcore.strategy.combination import Coordinates

class Vote:
    minimum = 3
    seeded = False

    def prepare(self, updates):
        step = np.median(updates.norms) / np.sqrt(updates.n)
        return Coordinates(lambda x: step * np.sign(np.sign(x).sum(axis=0)))
"""


@pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: rule if isinstance(rule, str) else rule["kind"])
def test_every_rule_can_be_verified(tmp_path: Path, rule: Any) -> None:
    """`fedmq verify` recomputes what the broker made, killed and started again in between, from what is on disk."""
    tables: Tables = {
        "mode": {"kind": "sync", "min_available": 7},
        "aggregate": {"rule": rule},
        "storage": {"keep_payloads": True},
        "stop": {"versions": 6},
    }
    (tmp_path / "rule_of_my_own.py").write_text(OWN_RULE)
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        f.start_workers(7, n=2000, delay=0.1)  # so that it is not over before it is killed
        f.wait_for_version(1)
        f.stop_broker(signal.SIGKILL)
        f.start_broker()
        f.finish()
        said = f.cli("verify").splitlines()
        assert said[-1] == "6 versions recomputed, all with the same bytes"
        assert [line.split()[-1] for line in said[:-1]] == [row["digest"] for row in f.history()[1:]]
        assert len({row["digest"] for row in f.history()}) == 7


def test_a_rule_that_raises_is_put_right(tmp_path: Path) -> None:
    """The broker ends with one line that names it; started again with another one, it folds the same frozen buffer."""
    tables: Tables = {
        "mode": {"kind": "sync", "min_available": 3},
        "aggregate": {"rule": "rule_of_my_own:Vote"},
        "storage": {"keep_payloads": True},
        "stop": {"versions": 3},
    }
    module = tmp_path / "rule_of_my_own.py"
    module.write_text(OWN_RULE.replace("np.median(updates.norms)", "np.no_such_median()"))
    with Federation(tmp_path, tables) as f:
        broker = f.start_broker()
        f.start_workers(3, n=500)
        assert broker.join(60)
        assert broker.code == StateError.exit_code
        log = broker.log.read_text(encoding="utf-8")
        assert "aggregate.rule rule_of_my_own:Vote: prepare raised AttributeError" in log
        assert "Traceback" not in log
        frozen = f.query("SELECT buffer FROM frozen")
        module.write_text(OWN_RULE)
        f.start_broker()
        f.finish()
        assert frozen == [(0,)]
        assert "3 versions recomputed, all with the same bytes" in f.cli("verify")


def test_a_damaged_payload_is_found(tmp_path: Path) -> None:
    """`fedmq verify` names the update whose bytes are not what was accepted, and a model that is not its sum."""
    tables: Tables = {
        "mode": {"kind": "async", "buffer": 2},
        "storage": {"keep_payloads": True},
        "stop": {"versions": 3},
    }
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        with f.together():
            f.start_workers(2, n=20_000)
        f.finish()
        # Of an update that was accepted: the spool may also hold what was under way at the end.
        victim = f.state / "spool" / f.updates(1)[0]["task"].hex()
        content = victim.read_bytes()
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        f.cli("verify", code=6)
        victim.write_bytes(content)
        assert "3 versions recomputed" in f.cli("verify")
