"""Each strategy's first versions, worked out by hand from its paper, through the parts that the broker composes.

All numbers are dyadic where the formula allows, so that they are exact; where it takes a root that is not, the
expected value is written as the formula.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedmq.fedcore import config
from fedmq.fedcore.strategy import optimizers, rules, staleness

PAGE = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text(encoding="utf-8")

Update = tuple[Sequence[float], int, int]
"""Delta, examples, versions missed."""


class Server:
    """The parts put together over vectors in memory."""

    def __init__(
        self,
        kernels: ModuleType,
        start: Sequence[float],
        table: Any,
        weighting: Any = "uniform",
        s: Any = None,
    ) -> None:
        self.w = np.array(start, np.float32)
        self._kernels = kernels
        self._mean = rules.Mean(weighting, s or staleness.Constant())
        self._optimizer = optimizers.make(table)
        assert isinstance(self._optimizer, optimizers.ServerOptimizer)
        self._state = self._optimizer.init(len(self.w))
        self._step = 0

    def make(self, *updates: Update) -> list[float]:
        """The next version of these updates."""
        assert isinstance(self._optimizer, optimizers.ServerOptimizer)
        shares = [self._mean.share(examples=n, tau=tau) for _, n, tau in updates]
        total = self._kernels.Accumulator(len(self.w), frac_bits=20)
        for share, (delta, _, _) in zip(shares, updates, strict=True):
            total.add(np.array(delta, np.float32), weight=share.weight)
        self._step += 1
        late = max(tau for _, _, tau in updates)
        d = total.mean(rules.denominator(shares))
        self._optimizer.apply(self.w, self._state, d, step=self._step, tau_max=late)
        return [float(x) for x in self.w]


def test_fedavg(kernels: ModuleType) -> None:
    """Σ nᵢ xᵢ / Σ nᵢ: of (4, 0) with 30 examples and (0, 8) with 10, from (2, 2), it is (3, 2)."""
    server = Server(kernels, [2, 2], config.Sgd(), "examples")
    assert server.make(([2, -2], 30, 0), ([-2, 6], 10, 0)) == [3, 2]


def test_fedbuff_divides_by_k(kernels: ModuleType) -> None:
    """Algorithm 1: w + η (1/K) Σ s(τᵢ) Δᵢ. With η = ½, s = 1, ½, ½ and Δ = 8, 8, 16: ½ · 20 / 3."""
    server = Server(kernels, [0, 1], config.Sgd(lr=0.5), s=staleness.Polynomial(0.5))
    found = server.make(([8, 0], 1, 0), ([8, 0], 500, 3), ([16, 0], 7, 3))
    assert found == [float(np.float32(0.5 * float(np.float32(20 / 3)))), 1]
    even = Server(kernels, [0], config.Sgd(), s=staleness.Polynomial(0.5))
    # Not Σ s Δ / Σ s, which would be 8: both are late, so the step is half as long.
    assert even.make(([8], 1, 3), ([8], 1, 3)) == [4]


def test_fedavgm(kernels: ModuleType) -> None:
    """v = βv + d, w += v with β = ½ and d = 4, 4, 0: v = 4, 6, 3."""
    server = Server(kernels, [0], config.Momentum(lr=1.0, beta=0.5))
    assert [server.make(([d], 1, 0)) for d in (4, 4, 0)] == [[4], [10], [13]]


def test_fedadagrad(kernels: ModuleType) -> None:
    """v += d², w += η d / (√v + ε) with η = 1, ε = 1, d = 3, 4: v = 9, 25; steps 3/4 and 4/6."""
    server = Server(kernels, [0], config.Adagrad(lr=1.0, eps=1.0))
    assert server.make(([3], 1, 0)) == [0.75]
    assert server.make(([4], 1, 0)) == [float(np.float32(0.75 + 4 / 6))]


def test_fedadam(kernels: ModuleType) -> None:
    """β₁ = ½, β₂ = ¾, ε = 1, η = 1, d = 4, 0: m = 2, 1; v = 4, 3; steps 2/3 and 1/(√3 + 1)."""
    server = Server(kernels, [0], config.Adam(lr=1.0, beta1=0.5, beta2=0.75, eps=1.0))
    (first,) = server.make(([4], 1, 0))
    assert first == float(np.float32(2 / 3))
    assert server.make(([0], 1, 0)) == [float(np.float32(first + 1 / (3**0.5 + 1)))]


def test_fedadam_corrected(kernels: ModuleType) -> None:
    """With bias correction, β₁ = β₂ = ½: η √½ / ½ = √2 at the first step, √¾ / ¾ at the second."""
    server = Server(kernels, [0], config.Adam(lr=1.0, beta1=0.5, beta2=0.5, eps=1.0, bias_correction=True))
    (first,) = server.make(([4], 1, 0))
    assert first == pytest.approx(2**0.5 * 2 / (8**0.5 + 1), rel=1e-7)
    (second,) = server.make(([0], 1, 0))
    assert second - first == pytest.approx(0.75**0.5 / 0.75 * 1 / (4**0.5 + 1), rel=1e-6)


def test_fedyogi(kernels: ModuleType) -> None:
    """v −= (1 − β₂) d² sign(v − d²), with β₁ = 0, β₂ = ¾, ε = 1, d = 4, 1: v = 4, then 4 − ¼; Adam's would be 3¼."""
    server = Server(kernels, [0], config.Yogi(lr=1.0, beta1=0.0, beta2=0.75, eps=1.0))
    (first,) = server.make(([4], 1, 0))
    assert first == float(np.float32(4 / 3))
    assert server.make(([1], 1, 0)) == [float(np.float32(first + 1 / (3.75**0.5 + 1)))]


def test_fadas(kernels: ModuleType) -> None:
    """v̂ = max(v̂, v) and η = 1/τ beyond the threshold: d = 4, 0 with β₁ = 0, β₂ = ¾, then 4 again, 4 versions late."""
    server = Server(kernels, [0], config.Fadas(lr=1.0, beta1=0.0, beta2=0.75, eps=1.0, delay_threshold=2))
    (first,) = server.make(([4], 1, 0))  # v = v̂ = 4
    assert first == float(np.float32(4 / 3))
    assert server.make(([0], 1, 2)) == [first]  # v = 3, v̂ = 4
    (third,) = server.make(([4], 1, 4))  # v = 6.25 = v̂: a quarter of 4 / 3.5
    assert third == float(np.float32(first + 0.25 * 4 / 3.5))


def test_staleness_of_fedasync() -> None:
    """Section 5.2's polynomial a = ½ and hinge a = 10, b = 4, at τ = 0, 3, 4, 5, 8."""
    taus = (0, 3, 4, 5, 8)
    assert [staleness.make("constant")(tau) for tau in taus] == [1] * 5
    assert [staleness.make("polynomial")(tau) for tau in taus] == [1, 0.5, 5**-0.5, 6**-0.5, 1 / 3]
    assert [staleness.make("hinge")(tau) for tau in taus] == [1, 1, 1, 1 / 11, 1 / 41]


def test_the_loop_of_the_page_runs() -> None:
    """As it stands: d = (1·(1, 0, 2) + ½·(4, 4, 0)) / 2 = (1.5, 1, 1), of which momentum takes half at first."""
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def version(" in b)
    module: dict[str, Any] = {}
    exec(compile(code, "strategies.md", "exec"), module)
    assert module["w"].tolist() == [0.75, 0.5, 0.5]


def test_the_pages_fedasync_is_a_config() -> None:
    """With what it says it needs."""
    (text,) = (b for b in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "fedasync" in b)
    assert config.parse(text).optimizer == config.FedAsync(alpha=0.6)
