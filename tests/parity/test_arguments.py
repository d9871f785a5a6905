"""Both backends refuse the same arguments, with the same kind of error, and have then written nothing."""

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest

KEY, NONCE = bytes(32), bytes(12)
STREAM = {"key": KEY, "nonce": NONCE}
F32 = np.ones(4, np.float32)


def read_only() -> Any:
    """An array that must not be written to."""
    x = np.ones(4, np.float32)
    x.flags.writeable = False
    return x


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("sum_squares", (3,), {}, "payload"),
    ("sum_squares", ("text",), {}, "payload"),
    ("sum_squares", (b"123",), {}, "payload"),
    ("sum_squares", (np.ones(4),), {}, "payload"),
    ("sum_squares", (np.ones(8, np.float32)[::2],), {}, "payload"),
    ("sum_squares", (b"1234",), {"encoding": "f8"}, "encoding"),
    ("sum_squares", (b"1234",), {"encoding": 3}, "encoding"),
    ("sum_squares", (b"1234",), {"threads": 0}, "threads"),
    ("sum_squares", (b"1234",), {"threads": 1.5}, "threads"),
    ("sum_squares", (bytes(1028 + 4),), {"encoding": "i8"}, "payload"),
    ("clip_", (np.ones(4), 1.0), {}, "x"),
    ("clip_", ([1.0], 1.0), {}, "x"),
    ("clip_", (read_only(), 1.0), {}, "x"),
    ("clip_", (F32, 0.0), {}, "max_norm"),
    ("clip_", (F32, float("nan")), {}, "max_norm"),
    ("clip_", (F32, "1"), {}, "max_norm"),
    ("clip_", (np.float32([np.nan]), 1.0), {}, "x"),
    ("add_gaussian_", (F32, -1.0), STREAM, "sigma"),
    ("add_gaussian_", (F32, 1.0), {"key": bytes(31), "nonce": NONCE}, "key"),
    ("add_gaussian_", (F32, 1.0), {"key": KEY, "nonce": "nonce"}, "nonce"),
    ("add_gaussian_", (F32, 1.0), {**STREAM, "offset": -1}, "offset"),
    ("add_gaussian_", (F32, 1.0), {**STREAM, "offset": 2**35}, "offset"),
    ("add_gaussian_", (F32, 1.0), {**STREAM, "offset": 1.0}, "offset"),
    ("encode", (np.ones(4), "f32"), {}, "x"),
    ("encode", (F32, "f64"), {}, "encoding"),
    ("encode", (F32, "i8"), {"key": b"short"}, "key"),
    ("decode", (bytes(16), "f32", 5), {}, "payload"),
    ("decode", (bytes(16), "f32", -1), {}, "n"),
    ("decode", (bytes(16), "f32", "4"), {}, "n"),
    ("sgd_", (F32, np.ones(5, np.float32)), {"lr": 1.0}, "delta"),
    ("sgd_", (F32, F32), {"lr": float("inf")}, "lr"),
    ("momentum_", (F32, read_only(), F32), {"lr": 1.0}, "velocity"),
    ("momentum_", (F32, np.ones(3, np.float32), F32), {"lr": 1.0}, "velocity"),
    ("momentum_", (F32, F32, F32), {"lr": 1.0, "beta": 1.0}, "beta"),
    ("weighted_mean", ([], []), {}, "payloads"),
    ("weighted_mean", ([F32, F32], [1.0]), {}, "weights"),
    ("weighted_mean", ([F32, F32[:3]], [1.0, 1.0]), {}, r"payloads\[1\]"),
    ("weighted_mean", ([F32], [-1.0]), {}, r"weights\[0\]"),
    ("weighted_mean", ([F32], [0.0]), {}, "weights"),
    ("weighted_mean", ([F32], [1e-9]), {}, "weights"),
    ("weighted_mean", ([F32], [1.0]), {"mode": "fast"}, "mode"),
    ("weighted_mean", ([F32], [1.0]), {"encoding": ["f32", "f32"]}, "encoding"),
    ("weighted_mean", ([F32], [1.0]), {"frac_bits": 101}, "frac_bits"),
    ("weighted_mean", ([F32], [1.0]), {"max_norm": -1}, "max_norm"),
    ("weighted_mean", ([F32], [1.0]), {"out": np.ones(5, np.float32)}, "out"),
    ("weighted_mean", ([F32], [1.0]), {"out": np.ones(4)}, "out"),
    ("median", ([],), {}, "payloads"),
    ("median", ([F32, F32[:3]],), {}, r"payloads\[1\]"),
    ("median", ([F32, F32],), {"encoding": ["f32"]}, "encoding"),
    ("median", ([F32],), {"threads": 0}, "threads"),
    ("median", ([F32],), {"out": np.ones(5, np.float32)}, "out"),
    ("median", ([F32],), {"out": read_only()}, "out"),
    ("median", ([F32, np.float32([0, 0, np.inf, 0])],), {}, r"payloads\[1\]"),
    ("trimmed_mean", ([F32] * 4, 2), {}, "trim must be from 0 to 1, not 2"),
    ("trimmed_mean", ([F32] * 4, -1), {}, "trim"),
    ("trimmed_mean", ([F32] * 4, 0.5), {}, "trim"),
    ("trimmed_mean", ([F32, np.float32([0, 0, 0, np.nan])], 0), {}, r"payloads\[1\]"),
    ("pairwise_sq_distances", ([],), {}, "payloads"),
    ("pairwise_sq_distances", ([F32, 5],), {}, r"payloads\[1\]"),
    ("pairwise_sq_distances", ([F32, F32[:3]],), {}, r"payloads\[1\]"),
    ("pairwise_sq_distances", ([F32],), {"encoding": "f8"}, "encoding"),
    ("pairwise_sq_distances", ([F32],), {"threads": 1025}, "threads"),
    ("Accumulator", (-1,), {"frac_bits": 0}, "n"),
    ("Accumulator", (4,), {"frac_bits": 101}, "frac_bits"),
    ("Accumulator", (4,), {"frac_bits": 0.0}, "frac_bits"),
    ("Accumulator", (4,), {"frac_bits": 0, "offset": 1000}, "offset"),
    ("Norm", ("f8",), {}, "encoding"),
]


@pytest.mark.parametrize(("name", "args", "options", "argument"), CALLS)
def test_wrong_arguments(
    native: ModuleType,
    reference: ModuleType,
    name: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    argument: str,
) -> None:
    """One kind of error, which names the argument."""
    with pytest.raises((TypeError, ValueError), match=argument) as expected:
        getattr(reference, name)(*args, **options)
    with pytest.raises(expected.type, match=argument):
        getattr(native, name)(*args, **options)
    assert F32.tolist() == [1.0] * 4


F32S = np.zeros(64, np.float32)
OTHER = np.ones(8, np.float32)

# What is written, first, and what else is handed over: the name of the later one of two that overlap.
OVERLAPS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, str]] = [
    ("sgd_", (F32S[:8], F32S[:8]), {"lr": 1.0}, "delta", "params"),
    ("sgd_", (F32S[:8], F32S[7:15]), {"lr": 1.0}, "delta", "params"),
    ("sgd_", (F32S[7:15], F32S[:8]), {"lr": 1.0}, "delta", "params"),
    ("momentum_", (F32S[:8], F32S[4:12], OTHER), {"lr": 1.0}, "velocity", "params"),
    ("momentum_", (F32S[:8], F32S[8:16], F32S[15:23]), {"lr": 1.0}, "delta", "velocity"),
    ("weighted_mean", ([OTHER, F32S[:8]], [1, 1]), {"out": F32S[:8]}, "out", r"payloads\[1\]"),
    (
        "weighted_mean",
        ([F32S[:8].view(np.uint8), OTHER], [1, 1]),
        {"out": F32S[3:11]},
        "out",
        r"payloads\[0\]",
    ),
    (
        "weighted_mean",
        ([OTHER.view(np.uint8)[:16]] * 2, [1, 1]),
        {"encoding": "f16", "out": OTHER},
        "out",
        "payloads",
    ),
]


@pytest.mark.parametrize(("name", "args", "options", "later", "earlier"), OVERLAPS)
def test_overlapping_outputs(
    native: ModuleType,
    reference: ModuleType,
    name: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    later: str,
    earlier: str,
) -> None:
    """What is written may share no byte with another argument: the result would depend on tiles and threads."""
    for module in (reference, native):
        with pytest.raises(ValueError, match=f"^{later} must not overlap {earlier}"):
            getattr(module, name)(*args, **options)
    assert not F32S.any()
    assert OTHER.all()


def test_neighbours_do_not_overlap(native: ModuleType, reference: ModuleType) -> None:
    """Arrays that touch are separate, and empty ones overlap nothing; inputs may be one another."""
    for module in (reference, native):
        x = np.ones(24, np.float32)
        module.momentum_(x[8:16], x[16:], x[:8], lr=1.0)
        assert x[:8].tolist() == [1.0] * 8
        module.sgd_(x[3:3], x[3:3], lr=1.0)
        assert module.weighted_mean([x[:8], x[:8]], [1, 1], out=x[8:16]).tolist() == [1.0] * 8


METHODS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("add", (bytes(15),), {}, "payload"),
    ("add", (bytes(16),), {"encoding": "f8"}, "encoding"),
    ("add", (bytes(16),), {"weight": -1.0}, "weight"),
    ("add", (bytes(16),), {"weight": 2.0**33}, "weight"),
    ("add", (bytes(16),), {"weight": None}, "weight"),
    ("add", (bytes(16),), {"norm": float("inf")}, "norm"),
    ("add", (bytes(16),), {"max_norm": 0}, "max_norm"),
    ("add_noise", (-1.0,), STREAM, "sigma"),
    ("add_noise", (1.0,), {"key": KEY, "nonce": bytes(13)}, "nonce"),
    ("add_noise", (2.0**60,), STREAM, "sigma"),
    ("subtract_noise", (-1.0,), STREAM, "sigma"),
    ("subtract_noise", (1.0,), {"key": KEY, "nonce": bytes(13)}, "nonce"),
    ("subtract_noise", (2.0**60,), STREAM, "sigma"),
    ("mean", (0.0,), {}, "denominator"),
    ("mean", (float("inf"),), {}, "denominator"),
    ("mean", (1.0,), {"out": np.ones(3, np.float32)}, "out"),
    ("merge", (3,), {}, "other"),
]


@pytest.mark.parametrize(("name", "args", "options", "argument"), METHODS)
def test_wrong_arguments_of_a_sum(
    native: ModuleType,
    reference: ModuleType,
    name: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    argument: str,
) -> None:
    """One kind of error, and the sum is as it was."""
    one, other = (module.Accumulator(4, frac_bits=10) for module in (native, reference))
    for sums in (one, other):
        sums.add(F32)
    with pytest.raises((TypeError, ValueError), match=argument) as expected:
        getattr(other, name)(*args, **options)
    with pytest.raises(expected.type, match=argument):
        getattr(one, name)(*args, **options)
    assert one.totals().tolist() == other.totals().tolist() == [1 << 10] * 4


def test_merge_of_different_sums(native: ModuleType, reference: ModuleType) -> None:
    """Sums of another size, grid or offset, or of the other backend, are refused."""
    for module, stranger in ((native, reference), (reference, native)):
        sums = module.Accumulator(4, frac_bits=10)
        for other in (
            module.Accumulator(5, frac_bits=10),
            module.Accumulator(4, frac_bits=11),
            module.Accumulator(4, frac_bits=10, offset=1024),
        ):
            with pytest.raises(ValueError, match="offset"):
                sums.merge(other)
        with pytest.raises(TypeError):
            sums.merge(stranger.Accumulator(4, frac_bits=10))


def test_an_unaligned_array_is_written_in_place(native: ModuleType) -> None:
    """numpy lets a float32 array lie anywhere; so do the kernels."""
    room = np.zeros(4 * 9 + 1, np.uint8)
    x = room[1:].view(np.float32)
    assert not x.flags.aligned
    x[:] = 2.0
    assert native.clip_(x, 3.0) == 6.0
    assert x.tolist() == [1.0] * 9


def test_multi_dimensional_arrays_count_in_memory_order(native: ModuleType) -> None:
    """Shapes do not matter, and `out` comes back as it was given."""
    out = np.zeros((2, 3), np.float32)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert native.weighted_mean([x, x.reshape(3, 2)], [1, 1], out=out) is out
    assert (out == x).all()
    assert native.decode(native.encode(x, "f32"), "f32", 6).shape == (6,)


def test_names(native: ModuleType, reference: ModuleType) -> None:
    """Each native name but info is one of the reference, and each parameter may be given by its name."""
    names = {name for name in dir(native) if not name.startswith("_")} - {"info"}
    assert names <= set(reference.__all__)
    assert set(native.info()) == {"isa", "threads", "version", "compiler"}
    for name in names - {"Accumulator", "Norm"}:
        parameters = inspect.signature(getattr(reference, name)).parameters
        native_signature = getattr(native, name).__doc__.splitlines()[0]
        for parameter in set(parameters) - {"self"}:
            assert f"{parameter}:" in native_signature, (name, parameter)
