"""Kernels on one vector of n values: Gaussian noise, and a step of the server's Adam."""

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .contest import Contestant, Topic
from .means import TOLERANCE, rooflines
from .peers import Peers
from .workload import Updates

__all__ = ["SECURE", "STAND_IN", "adam", "noise"]

F32 = NDArray[np.float32]

SECURE: Final = "Opacus' secure mode"
STAND_IN: Final = "secure mode's arithmetic"
"""Four normal draws, added and halved, each by Box–Muller from the operating system's generator."""
_KEY: Final = bytes(range(32))
_NONCE: Final = bytes(12)
_SIGMAS: Final = 6.0
_LR, _BETA1, _BETA2, _EPS = 0.1, 0.9, 0.99, 1e-3


def noise(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """N(0, 1) for every value: fedmq adds it to a vector, the others only draw it."""
    n = updates.n
    x, wide = np.zeros(n, np.float32), np.empty(n, np.float64)
    found = rooflines(updates, peers, threads)

    def added(add: Callable[..., None], count: int) -> F32:
        add(x, 1.0, key=_KEY, nonce=_NONCE, threads=count)
        return x

    native = peers.native("add_gaussian_", "noise")
    for count in threads if native is not None else ():
        assert native is not None
        found.append(_noise("native", "ChaCha20", partial(added, native, count), count))
    found.append(_noise("python", "reference", partial(added, peers.reference("add_gaussian_"), 1)))

    draw = np.random.default_rng(0).standard_normal
    single = partial(draw, out=x, dtype=np.float32)
    found.append(_noise("numpy", "standard_normal, float32", single))
    found.append(_noise("numpy", "standard_normal, float64", partial(draw, out=wide)))
    if peers.torch is not None:
        secure, name = _secure(peers.torch, n)
        into = peers.torch.from_numpy(x)
        for count in threads:
            randn = partial(peers.torch.randn, n, out=into)
            found.append(_noise("torch", "randn", randn, count))
            found.append(_noise("torch", name, secure, count))

    def wrong(contestant: Contestant, result: Any) -> str:
        if contestant.kernel.startswith("_"):
            return ""
        drawn = np.asarray(result, np.float32)
        mean, std = float(drawn.mean(dtype=np.float64)), float(drawn.std(dtype=np.float64))
        x.fill(0)  # for whoever adds to it next
        if abs(mean) * math.sqrt(n) < _SIGMAS and abs(std - 1) * math.sqrt(2 * n) < _SIGMAS:
            return ""
        return f"it has mean {mean:.3g} and standard deviation {std:.3g}, not 0 and 1"

    return Topic(
        name="noise",
        title="Gaussian noise for a float32 vector",
        n=n,
        k=1,
        size_bytes=4 * n,
        ours=("add_gaussian_", ""),
        contestants=found,
        wrong=wrong,
    )


def _noise(impl: str, variant: str, run: Callable[[], Any], threads: int = 1) -> Contestant:
    return Contestant(kernel="add_gaussian_", impl=impl, variant=variant, threads=threads, run=run)


def _secure(torch: Any, n: int) -> tuple[Callable[[], Any], str]:
    """Opacus' own, where it would run at all: its secure mode refuses to without torchcsprng."""
    if importlib.util.find_spec("opacus") and importlib.util.find_spec("torchcsprng"):
        import torchcsprng
        from opacus.optimizers.optimizer import _generate_noise

        generator = torchcsprng.create_random_device_generator("/dev/urandom")
        like = torch.empty(n)
        return partial(_generate_noise, 1.0, like, generator=generator, secure_mode=True), SECURE

    def normal() -> Any:
        words = torch.frombuffer(bytearray(os.urandom(4 * (n + n % 2))), dtype=torch.int32).float()
        uniform = words.mul_(2.0**-32).add_(0.5).clamp_(2.0**-33, 1.0)
        radius, angle = uniform.chunk(2)
        radius.log_().mul_(-2).sqrt_()
        angle.mul_(2 * math.pi)
        return torch.cat((radius * angle.cos(), radius * angle.sin()))[:n]

    def four() -> Any:
        total = normal()
        for _ in range(3):
            total += normal()
        return total.mul_(0.5)

    return four, STAND_IN


def adam(updates: Updates, peers: Peers, threads: Sequence[int]) -> Topic:
    """One step of Adam without bias correction: 16 bytes read and 12 written for each parameter."""
    delta = updates.rows[0]
    found = rooflines(updates, peers, threads)
    native = peers.native("adam_", "adam")
    for count in threads if native is not None else ():
        assert native is not None
        found.append(_step("native", "", _fedmq_step(native, delta, count), count))
    found.append(_step("python", "reference", _fedmq_step(peers.reference("adam_"), delta, 1)))
    found.append(_step("numpy", "formulas", _numpy_step(delta)))
    if peers.torch is not None:
        found += [_step("torch", "Adam, fused", _torch_step(peers.torch, delta), count) for count in threads]

    wide = delta.astype(np.float64)
    expected = _LR * (1 - _BETA1) * wide / (math.sqrt(1 - _BETA2) * np.abs(wide) + _EPS)
    del wide

    def wrong(contestant: Contestant, result: Any) -> str:
        if contestant.kernel.startswith("_"):
            return ""
        error = float(np.abs(result - expected).max())
        return "" if error <= TOLERANCE else f"its first step differs by {error:.2g}"

    return Topic(
        name="adam",
        title="a step of Adam",
        n=updates.n,
        k=1,
        size_bytes=16 * updates.n,
        ours=("adam_", ""),
        contestants=found,
        wrong=wrong,
    )


def _step(impl: str, variant: str, run: Callable[[], Any], threads: int = 1) -> Contestant:
    return Contestant(kernel="adam_", impl=impl, variant=variant, threads=threads, run=run)


def _fedmq_step(step: Callable[..., None], delta: F32, threads: int) -> Callable[[], F32]:
    w, m, v = (np.zeros_like(delta) for _ in range(3))

    def run() -> F32:
        step(w, m, v, delta, lr=_LR, beta1=_BETA1, beta2=_BETA2, eps=_EPS, threads=threads)
        return w

    return run


def _numpy_step(delta: F32) -> Callable[[], F32]:
    w, m, v = (np.zeros_like(delta) for _ in range(3))

    def run() -> F32:
        numpy_adam(w, m, v, delta)
        return w

    return run


def numpy_adam(w: F32, m: F32, v: F32, delta: F32) -> None:
    """Adam as its formulas read, in float32."""
    m *= _BETA1
    m += (1 - _BETA1) * delta
    v *= _BETA2
    v += (1 - _BETA2) * delta * delta
    w += _LR * m / (np.sqrt(v) + _EPS)


def _torch_step(torch: Any, delta: F32) -> Callable[[], F32]:
    # Torch corrects the bias of m and v; with these numbers its first step is the one without correction.
    lr, eps = _LR * (1 - _BETA1) / math.sqrt(1 - _BETA2), _EPS / math.sqrt(1 - _BETA2)
    weights = torch.zeros(delta.size, requires_grad=True)
    weights.grad = -torch.from_numpy(delta)
    optimizer = torch.optim.Adam([weights], lr=lr, betas=(_BETA1, _BETA2), eps=eps, fused=True)

    def run() -> F32:
        optimizer.step()
        stepped: F32 = weights.detach().numpy()
        return stepped

    return run
