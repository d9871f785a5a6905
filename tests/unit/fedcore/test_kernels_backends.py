"""The contract of the choice of a backend: per function, by the environment, for the length of a block."""

import os
import subprocess
import sys
from types import ModuleType

import pytest

from fedmq.fedcore import kernels
from fedmq.fedcore.kernels import reference


def run(code: str, setting: str | None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with FEDMQ_KERNELS set, or not set."""
    env = {key: value for key, value in os.environ.items() if key != "FEDMQ_KERNELS"}
    if setting is not None:
        env["FEDMQ_KERNELS"] = setting
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def half_native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A native module that has one function only."""
    module = ModuleType("_native")
    module.__dict__["sum_squares"] = lambda payload, **_: 42.0
    module.__dict__["info"] = lambda: {"isa": "avx9", "threads": 3, "version": "1", "compiler": "cc 1.0"}
    monkeypatch.setattr(kernels, "_native", module)
    return module


def test_all_of_the_api_is_there() -> None:
    """The names that the design promises, and nothing undocumented among them."""
    vectors = {"add_gaussian_", "clip_", "decode", "encode", "pairwise_sq_distances", "sum_squares"}
    means = {"Accumulator", "Norm", "dyadic", "frac_bits_for", "median", "trimmed_mean", "weighted_mean"}
    optimizers = {"adagrad_", "adam_", "fadas_", "momentum_", "sgd_", "yogi_"}
    promised = vectors | means | optimizers | {"backend", "info", "use"}
    assert set(kernels.__all__) == promised
    assert all(getattr(kernels, name).__doc__ for name in promised - {"backend"})


def test_python_forces_the_fallback() -> None:
    """FEDMQ_KERNELS=python, whatever was compiled."""
    code = "from fedmq.fedcore import kernels as k; print(k.backend, k.info()['backend'], k.sum_squares(b''))"
    done = run(code, "python")
    assert done.stdout.split() == ["python", "python", "0.0"], done.stderr


def test_another_setting_is_answered_with_what_may_be() -> None:
    """A typing mistake does not silently choose a backend."""
    done = run("import fedmq.fedcore.kernels", "pyhton")
    assert done.returncode != 0
    assert "ConfigError: FEDMQ_KERNELS must be native or python, or not be set; it is 'pyhton'" in done.stderr


def test_native_is_had_or_refused() -> None:
    """FEDMQ_KERNELS=native never falls back: it is native, or says why it cannot be."""
    done = run("from fedmq.fedcore import kernels as k; print(k.backend)", "native")
    if kernels.info()["reason"]:
        assert "FEDMQ_KERNELS is native, but the native kernels cannot be used" in done.stderr
    else:
        assert done.stdout.strip() == "native"


def test_without_a_setting_the_best_backend_is_taken() -> None:
    """Native where it was compiled, and info says why not where it was not."""
    done = run("from fedmq.fedcore import kernels as k; print(k.backend, bool(k.info()['reason']))", None)
    assert done.stdout.split() in (["native", "False"], ["python", "True"])


def test_info_says_what_computes() -> None:
    """Each key that logs and reports read."""
    with kernels.use("python"):
        info = kernels.info()
    assert set(info) == {"backend", "isa", "threads", "version", "compiler", "python_functions", "reason"}
    assert info["backend"] == "python"
    assert info["python_functions"] == reference.__all__


def test_functions_that_native_lacks_come_from_the_reference(half_native: ModuleType) -> None:
    """Function by function; info names what was borrowed."""
    with kernels.use("native"):
        assert kernels.backend == "native"
        assert kernels.sum_squares(b"") == 42.0
        assert kernels.median is reference.median
        info = kernels.info()
        assert info["isa"] == "avx9"
        assert "median" in info["python_functions"]
        assert "sum_squares" not in info["python_functions"]


def fail_while_using(name: str) -> None:
    """A block that ends by an error."""
    with kernels.use(name):
        raise RuntimeError("inside")


def test_use_ends_with_its_block(half_native: ModuleType) -> None:
    """Nested and after an error too."""
    outside = kernels.backend
    with kernels.use("python"):
        with kernels.use("native"):
            assert kernels.sum_squares(b"") == 42.0
        assert kernels.backend == "python"
        with pytest.raises(RuntimeError, match="inside"):
            fail_while_using("native")
        assert kernels.backend == "python"
        assert kernels.sum_squares is reference.sum_squares
    assert kernels.backend == outside


def test_use_refuses_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown backend, and native where nothing was compiled."""
    with pytest.raises(ValueError, match="native or python, not 'numba'"), kernels.use("numba"):
        pass
    monkeypatch.setattr(kernels, "_native", None)
    with pytest.raises(ValueError, match="cannot be used"), kernels.use("native"):
        pass
