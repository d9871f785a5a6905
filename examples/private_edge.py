"""Two kinds of readings told apart, under differential privacy, on a machine without torch.

    fedmq broker federation.toml                    # model.initial = "first-worker"
    fedmq worker --connect tcp://127.0.0.1:5560 --app private_edge:app --state edge-1 --node machine=1

The noise is this worker's own: neither the broker nor another worker need be trusted with a single reading. Its ledger
lies in the state folder; when the 200 planned steps are spent, it answers every further task with "privacy_budget".
"""

import numpy as np

from fedmq.worker.adapters.linear import PrivateLinearApp
from fedmq.worker.privacy import LocalPrivacy

# ε < 1.86 for every reading of this machine, over all 200 steps: PRIVACY.planned_epsilon(), with pip install
# fedmq[privacy]. Where that is installed on the machine itself, give epsilon in place of noise_multiplier.
PRIVACY = LocalPrivacy(
    noise_multiplier=1.0,
    delta=1e-5,
    max_grad_norm=1.0,
    sampling_rate=0.02,
    divisor=80.0,  # 0.02 times about 4,000 readings: a constant, so that it does not tell how many there are
    max_steps=200,
    steps_per_task=10,
)


def readings(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What a sensor would give: eight channels, and whether the machine was about to fail."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8))
    return x, (x @ np.linspace(-1, 1, 8) > 0).astype(int)


def app(node: dict[str, str]) -> PrivateLinearApp:
    """The client app. What is evaluated on is not covered by the promise: it is public here."""
    data = readings(int(node.get("machine", 0)) + 1, 4000)
    return PrivateLinearApp(data, kind="logistic", privacy=PRIVACY, test=readings(0, 1000), lr=2.0)
