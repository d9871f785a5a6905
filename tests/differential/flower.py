"""Flower, which `pip install fedmq[dev]` brings: without it the tests here fail, and are not skipped.

What its dependencies have to say about each other while they are imported is not this project's.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import strategy
    from flwr.server.strategy import aggregate

__all__ = [
    "Code", "FitRes", "Status", "aggregate", "ndarrays_to_parameters", "parameters_to_ndarrays", "strategy",
]  # fmt: skip
