"""The compiled twin of `fedmq.fedcore.kernels.reference`: the same functions, the same bits.

The reference documents what each does. Built from ``csrc/``; absent in a pure Python install.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_F32: TypeAlias = NDArray[np.float32]
_Payload: TypeAlias = Buffer | NDArray[Any]

class _Info(TypedDict):
    isa: str
    threads: int
    version: str
    compiler: str

@final
class Accumulator:
    def __init__(self, n: int, *, frac_bits: int, offset: int = 0, threads: int | None = None) -> None: ...
    def add(
        self,
        payload: _Payload,
        *,
        encoding: str = "f32",
        weight: float = 1.0,
        norm: float | None = None,
        max_norm: float | None = None,
        truncate: bool = False,
    ) -> float | None: ...
    def add_all(
        self,
        payloads: Sequence[_Payload],
        weights: Sequence[float],
        norms: Sequence[float],
        *,
        encoding: str | Sequence[str] = "f32",
        max_norm: float | None = None,
        truncate: bool = False,
    ) -> None: ...
    def add_noise(self, sigma: float, *, key: _Payload, nonce: _Payload) -> None: ...
    def subtract_noise(self, sigma: float, *, key: _Payload, nonce: _Payload) -> None: ...
    def mean(self, denominator: float, out: _F32 | None = None) -> _F32: ...
    def merge(self, other: Accumulator) -> None: ...
    def reset(self, offset: int = 0) -> None: ...
    def totals(self) -> NDArray[np.int64]: ...

@final
class Norm:
    def __init__(self, encoding: str = "f32", n: int | None = None) -> None: ...
    def update(self, data: _Payload) -> None: ...
    def value(self) -> float: ...

def weighted_mean(
    payloads: Sequence[_Payload],
    weights: Sequence[float] | NDArray[np.floating],
    *,
    encoding: str | Sequence[str] = "f32",
    mode: str = "exact",
    frac_bits: int | None = None,
    max_norm: float | None = None,
    out: _F32 | None = None,
    threads: int | None = None,
) -> _F32: ...
def median(
    payloads: Sequence[_Payload],
    *,
    encoding: str | Sequence[str] = "f32",
    out: _F32 | None = None,
    threads: int | None = None,
) -> _F32: ...
def trimmed_mean(
    payloads: Sequence[_Payload],
    trim: int,
    *,
    encoding: str | Sequence[str] = "f32",
    out: _F32 | None = None,
    threads: int | None = None,
) -> _F32: ...
def pairwise_sq_distances(
    payloads: Sequence[_Payload], *, encoding: str | Sequence[str] = "f32", threads: int | None = None
) -> NDArray[np.float64]: ...
def sum_squares(
    payload: _Payload, *, encoding: str = "f32", n: int | None = None, threads: int | None = None
) -> float: ...
def clip_(x: _F32, max_norm: float, *, threads: int | None = None) -> float: ...
def add_gaussian_(
    x: _F32, sigma: float, *, key: _Payload, nonce: _Payload, offset: int = 0, threads: int | None = None
) -> None: ...
def encode(
    x: _F32, encoding: str, *, key: _Payload | None = None, nonce: _Payload | None = None
) -> bytes: ...
def decode(payload: _Payload, encoding: str, n: int) -> _F32: ...
def sgd_(params: _F32, delta: _F32, *, lr: float, threads: int | None = None) -> None: ...
def momentum_(
    params: _F32, velocity: _F32, delta: _F32, *, lr: float, beta: float = 0.9, threads: int | None = None
) -> None: ...
def adagrad_(
    params: _F32, v: _F32, delta: _F32, *, lr: float, eps: float = 1e-3, threads: int | None = None
) -> None: ...
def adam_(
    params: _F32,
    m: _F32,
    v: _F32,
    delta: _F32,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    threads: int | None = None,
) -> None: ...
def yogi_(
    params: _F32,
    m: _F32,
    v: _F32,
    delta: _F32,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    threads: int | None = None,
) -> None: ...
def fadas_(
    params: _F32,
    m: _F32,
    v: _F32,
    vhat: _F32,
    delta: _F32,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    threads: int | None = None,
) -> None: ...
def info() -> _Info: ...
def _read4(payloads: Sequence[_Payload], *, threads: int | None = None) -> int: ...
def _copy(dst: _F32, src: _F32, *, threads: int | None = None) -> None: ...
