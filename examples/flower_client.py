"""An ordinary Flower client. Nothing in it knows of fedmq, and it runs as it is:

fedmq worker --connect tcp://127.0.0.1:5560 --app flower_client:client_fn --node partition-id=3
"""

import flwr as fl
import numpy as np


class Client(fl.client.NumPyClient):
    """Logistic regression on this partition's points."""

    def __init__(self, partition: int, lr: float) -> None:
        rng = np.random.default_rng(partition)
        self.x = rng.normal(size=(300, 5))
        self.y = (self.x @ np.array([2.0, -1.0, 0.5, 0.0, 1.0]) > 0).astype(float)
        self.lr = lr
        self.w = np.zeros(5)

    def get_parameters(self, config):
        return [self.w]

    def fit(self, parameters, config):
        self.w = parameters[0]
        for _ in range(10):
            self.w = self.w - self.lr * self.x.T @ (self._probability() - self.y) / len(self.y)
        return self.get_parameters({}), len(self.y), {}

    def evaluate(self, parameters, config):
        self.w = parameters[0]
        p = np.clip(self._probability(), 1e-7, 1 - 1e-7)
        loss = -np.mean(self.y * np.log(p) + (1 - self.y) * np.log(1 - p))
        return float(loss), len(self.y), {"accuracy": np.mean((p > 0.5) == self.y)}

    def _probability(self):
        return 1 / (1 + np.exp(-self.x @ self.w))


def client_fn(context: fl.common.Context) -> fl.client.Client:
    lr = float(context.run_config.get("lr", 0.5))
    return Client(int(context.node_config["partition-id"]), lr).to_client()
