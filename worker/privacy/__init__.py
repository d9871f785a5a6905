"""Record-level differential privacy in the worker: DP-SGD on data that never leaves it.

Two promises, told apart by who draws the noise:

* `LocalPrivacy`: several steps a task, each with noise of the worker's own. Nobody else is trusted; the worker keeps
  count of what it spent in its state folder (`ledger`).
* `GradientSum`: one sum of clipped per-example gradients a task, without noise. The broker of a federation with a
  ``[privacy]`` table adds it, once for all workers, and is trusted for that; the ledger is the broker's.

    plan       what is promised, calibrated
    ledger     what was spent, on disk before it is spent
    sampling   who is in a batch: secret coins
    gradients  what a model must give, and the exact sum of clipped rows
    training   the loop

Nothing here imports a framework. `fedmq.worker.adapters.linear` (numpy) and `fedmq.worker.adapters.private_torch` are
client apps on top of it.
"""

from .plan import GradientSum, LocalPrivacy

__all__ = ["GradientSum", "LocalPrivacy"]
