"""What every version must be, computed a second time: from what the workers made and the broker accepted.

The broker folds with the kernels that users run, tile by tile, in the order of task ids. Here the same sums are
made of Python's own integers, in another order, on files that are taken apart by hand; noise and optimizers come
from the numpy definition of the kernels. What comes out must have the same bits.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmq.broker.rows import AcceptRow, VersionRow
from fedmq.fedcore.config import Config, FedAsync, Mean
from fedmq.fedcore.kernels import reference
from fedmq.fedcore.strategy import optimizers

from . import recompute_rules
from .recompute_noise import Noise

F32 = NDArray[np.float32]

SURPLUS = 1 + 2.0**-32
"""By which a private norm is taken larger than it was measured, so that rounding cannot exceed the bound."""


class Chain:
    """A federation's versions, one computed from the other.

    Parameters
    ----------
    config : Config
    noise : Noise or None
        With privacy.
    """

    def __init__(self, config: Config, noise: Noise | None) -> None:
        self.files: dict[int, bytes] = {}
        self._config = config
        self._noise = noise
        self._optimizer = optimizers.make(config.optimizer)
        self._state: list[F32] = []
        self._before = np.zeros(0, np.float32)
        """The combined update of the version before: some rules start from it."""

    def begin(self, file: bytes) -> None:
        """Version 0 is this file."""
        self.files[0] = file
        first, last = flat_run(file)
        self._state = [np.zeros((last - first) // 4, np.float32) for _ in self._optimizer.slots]
        self._before = np.zeros((last - first) // 4, np.float32)

    def go_on(self, made: VersionRow, rows: Sequence[AcceptRow], payloads: Mapping[bytes, bytes]) -> None:
        """The next version: its file, and what its row must say."""
        version = made.info.version
        base = self.files[version - 1]
        first, last = flat_run(base)
        delta = self._before = self._combined(made, rows, payloads, (last - first) // 4)
        params = np.frombuffer(base[first:last], "<f4").copy()
        self._step(version, params, delta, made, rows)
        self.files[version] = base[:first] + params.astype("<f4").tobytes() + base[last:]

    def halves(self, version: int) -> bytes:
        """A version with its numbers as halves, as docs/protocol.md says."""
        file = self.files[version]
        first, last = flat_run(file)
        return file[:first] + np.frombuffer(file[first:last], "<f4").astype("<f2").tobytes() + file[last:]

    def rounded(self, version: int) -> bytes:
        """What those halves stand for."""
        file = self.files[version]
        first, last = flat_run(file)
        halves = np.frombuffer(file[first:last], "<f4").astype("<f2")
        return file[:first] + halves.astype("<f4").tobytes() + file[last:]

    def _step(
        self, version: int, params: F32, delta: F32, made: VersionRow, rows: Sequence[AcceptRow]
    ) -> None:
        if isinstance(self._config.optimizer, FedAsync):
            (row,) = rows
            assert made.denominator is not None
            base = self.files[row.base]
            first, last = flat_run(base)
            origin = np.frombuffer(base[first:last], "<f4").tolist()
            alpha, share = self._config.optimizer.alpha, row.weight / made.denominator
            params[:] = [
                w + alpha * (share * (b - w) + d)
                for w, b, d in zip(params.tolist(), origin, delta.tolist(), strict=True)
            ]
            return
        tau_max = max((row.tau for row in rows), default=0)
        assert isinstance(self._optimizer, optimizers.ServerOptimizer)
        kernel = getattr(reference, self._optimizer.kernel)
        lr = self._optimizer.rate(version, tau_max)
        kernel(params, *self._state, delta, lr=lr, **self._optimizer.hyper)

    def _combined(
        self, made: VersionRow, rows: Sequence[AcceptRow], payloads: Mapping[bytes, bytes], n: int
    ) -> F32:
        private = self._noise
        uniform = self._config.aggregate.weight == "uniform"
        rule: Any = self._config.aggregate.rule
        if not isinstance(rule, Mean):
            deltas = {row.task: decoded(payloads[row.task], row.encoding) for row in rows}
            masses = [1 if uniform else row.examples for row in rows]
            return recompute_rules.combined(rule, made, rows, deltas, masses, self._before)
        unit = 2.0**made.frac_bits if made.frac_bits is not None else math.nan
        total = [0] * n
        for row in reversed(rows):
            if private is not None and not math.isfinite(row.norm):
                continue
            scale = row.weight * unit
            if private is not None:
                norm = row.norm * SURPLUS
                scale = row.weight * (private.bound / norm if norm > private.bound else 1.0) * unit
            exact = decoded(payloads[row.task], row.encoding).astype(np.float64) * scale
            steps = (np.trunc if private is not None else np.rint)(exact).astype(np.int64).tolist()
            if private is None and n:
                _check_one(payloads[row.task], row, scale, steps)
            total = [a + b for a, b in zip(total, steps, strict=True)]
        if private is not None:
            private.add(total, made, rows)
            private.moves(made, rows)
            denominator = private.denominator
        else:
            denominator = float(len(rows) if uniform else sum(row.examples for row in rows))
        assert made.denominator == denominator, "the denominator"
        return np.array([float(t) / (denominator * unit) for t in total], np.float64).astype(np.float32)


def _check_one(payload: bytes, row: AcceptRow, scale: float, steps: list[int]) -> None:
    """One element of it in fractions: weight times value on the grid, to the nearest, ties to even."""
    at = row.task[-1] % len(steps)
    value = float(decoded(payload, row.encoding)[at])
    assert steps[at] == round(Fraction(value) * Fraction(scale)), "the grid"


def flat_run(file: bytes) -> tuple[int, int]:
    """Where a model's float32 numbers begin and end in its file."""
    (length,) = struct.unpack_from("<Q", file)
    header: dict[str, Any] = json.loads(file[8 : 8 + length])
    runs = [e["data_offsets"] for name, e in header.items() if name != "__metadata__" and e["dtype"] == "F32"]
    start = 8 + length
    return start + min((a for a, _ in runs), default=0), start + max((b for _, b in runs), default=0)


def decoded(payload: bytes, encoding: str) -> F32:
    """The float32 numbers of a payload."""
    match encoding:
        case "f32":
            return np.frombuffer(payload, "<f4")
        case "f16":
            return np.frombuffer(payload, "<f2").astype(np.float32)
        case "bf16":
            return (np.frombuffer(payload, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
        case "i8":
            parts = []
            for at in range(0, len(payload), 1028):
                scale = np.frombuffer(payload, "<f4", 1, at)
                parts.append(scale * np.frombuffer(payload[at + 4 : at + 1028], np.int8).astype(np.float32))
            return np.concatenate(parts) if parts else np.zeros(0, np.float32)
        case "topk":
            return _decoded_topk(payload)
    raise AssertionError(f"encoding {encoding}")


def _decoded_topk(payload: bytes) -> F32:
    """One value after the other, as the protocol page says."""
    values: list[float] = []
    at = 0
    while at < len(payload):
        span, count, gap_bytes = struct.unpack_from("<3H", payload, at)
        gaps = iter(payload[at + 6 : at + 6 + gap_bytes])
        block, place = [0.0] * span, -1
        for value in struct.unpack_from(f"<{count}e", payload, at + 6 + gap_bytes):
            gap = next(gaps)
            place += 1 + (gap if gap < 128 else gap - 128 + 128 * next(gaps))
            block[place] = value
        values += block
        at += 6 + gap_bytes + 2 * count
    return np.array(values, np.float32)


def weight_of(config: Config, examples: int, tau: int) -> float:
    """What an update counts: its mass times its staleness factor, to the nearest multiple of 2^-20."""
    mode: Any = config.mode
    factor = 1.0
    if mode.kind == "async" and mode.staleness == "polynomial":
        factor = (1 + tau) ** -mode.exponent
    elif mode.kind == "async" and mode.staleness == "hinge":
        late = tau - mode.hinge_threshold
        factor = 1.0 if late <= 0 else 1 / (mode.hinge_slope * late + 1)
    mass = examples if config.aggregate.weight == "examples" else 1
    return max(round(mass * factor * 2**20) / 2**20, 2.0**-20)
