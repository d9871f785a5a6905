"""FedProx in a torch training: a term that holds a worker's model near the one that it was given.

    def train(model, task):
        proximal = ProximalTerm(model, task.config["mu"])      # before the first step
        ...
            loss = criterion(model(inputs), labels) + proximal()

Rules that hold here:

* The base is what the model holds when the term is made: in `TorchApp`'s train, the version that the task names.
* Parameters that require a gradient count, each once, tied ones too. Buffers (running means, integers) do not.
* The broker needs to know nothing of it: an update is trained − base as ever.

References
----------
Li et al., *Federated Optimization in Heterogeneous Networks* (FedProx), arXiv:1812.06127.
"""

import math

import torch
from torch import nn

from fedmq.fedcore.errors import ClientAppError

__all__ = ["ProximalTerm"]


class ProximalTerm:
    """μ/2 ‖w − w_base‖², to be added to the loss of every step. Its gradient is μ (w − w_base).

    Parameters
    ----------
    model : torch.nn.Module
        Copied once, as far as it is trained.
    mu : float
        μ ≥ 0; with 0 nothing is copied or added. The paper tries 0.001, 0.01, 0.1 and 1.

    Raises
    ------
    ClientAppError
        When `mu` is no number, negative or not finite: it comes from the federation's ``[task]`` table.

    Examples
    --------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> term = ProximalTerm(model, mu=0.5)
    >>> with torch.no_grad():
    ...     _ = model.weight.add_(2.0)
    >>> term().backward()
    >>> term().item(), model.weight.grad.item()
    (1.0, 1.0)
    """

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._mu = _checked(mu)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad] if mu else []
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in trained]

    def __call__(self) -> torch.Tensor:
        """The term at the model's present weights, a scalar. Parameters of 16 bits are subtracted in float32."""
        if not self._pairs:
            return torch.zeros(())
        first, *others = [(_wide(now) - _wide(base)).square().sum() for now, base in self._pairs]
        for term in others:
            first = first + term.to(first)  # its device and type
        return self._mu / 2 * first


def _checked(mu: object) -> float:
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 <= mu < math.inf:
        raise ClientAppError(f"mu must be a finite number ≥ 0, got {mu!r}")
    return float(mu)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
