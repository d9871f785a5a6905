"""Federated averaging in one process, for notebooks: no broker, no sockets, the same arithmetic.

    fed = FederatedAveraging(model, num_clients=5)
    for round in range(10):
        loss = fed.train_round(loaders, epochs=2, lr=0.1)

Rules that hold here, where notebooks often go wrong:

* The mean is weighted by examples, and exact: it is the broker's own sum, so that the order of clients does not
  matter.
* Integer buffers (``num_batches_tracked``) are not averaged; the model keeps its own.
* A client without examples is left out. When nobody has any, that is an error and not a division by zero.
* Clients train copies. The model changes in `aggregate`, whole or not at all.

torch is imported when something is called.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import kernels, state_dict, torch_state
from .errors import ClientAppError
from .layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FederatedAveraging"]

State: TypeAlias = "Mapping[str, torch.Tensor]"
Batches: TypeAlias = "Iterable[tuple[torch.Tensor, torch.Tensor]]"
Update: TypeAlias = "tuple[State, int]"


class FederatedAveraging:
    """FedAvg over the clients' data, round by round, in this process.

    Parameters
    ----------
    model : torch.nn.Module
        The global model; `aggregate` changes its weights.
    num_clients : int
        How many clients take part, ≥ 1.

    References
    ----------
    McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, arXiv:1602.05629.
    """

    def __init__(self, model: nn.Module, num_clients: int) -> None:
        if num_clients < 1:
            raise ClientAppError(f"num_clients must be ≥ 1, got {num_clients}")
        self.model = model
        self.num_clients = num_clients

    def client_update(
        self,
        client_data: Batches,
        epochs: int = 1,
        lr: float = 0.01,
        *,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Train a copy of the model on one client's data with plain SGD.

        Parameters
        ----------
        client_data : iterable of (inputs, targets)
            Batches, such as a ``DataLoader``; it is gone through once an epoch.
        epochs : int
            ≥ 1.
        lr : float
            SGD's learning rate.
        criterion : callable, optional
            ``criterion(outputs, targets)`` returns a batch's mean loss; cross-entropy when left out.

        Returns
        -------
        (dict of str to Tensor, int)
            The trained state dict, and the number of examples in one pass. Without data: the model's own, and 0.
        """
        state, examples, _ = self._trained(client_data, epochs, lr, criterion)
        return state, examples

    def aggregate(
        self, updates: Sequence[State] | Sequence[Update], weights: Sequence[float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Make the model the weighted mean of what clients trained.

        Parameters
        ----------
        updates : sequence of state dicts, or of (state dict, examples)
            What `client_update` returns.
        weights : sequence of float, optional
            Each client's weight, ≥ 0; the numbers of examples when left out, or all the same where there are none.

        Returns
        -------
        dict of str to Tensor
            The model's new state dict. Integer buffers are what they were.

        Raises
        ------
        ClientAppError
            When there is no update, or the weights do not fit, are negative, or are all zero.
        LayoutError
            When an update has other names or shapes than the model.
        """
        states, shares = _weighted(updates, weights)
        base, dtypes = torch_state.to_arrays(self.model.state_dict())
        layout = Layout.of(base, dtypes=dtypes)
        trained = []
        for client, state in states.items():
            flat = state_dict.flatten(layout, torch_state.to_arrays(state)[0])
            if not math.isfinite(kernels.sum_squares(flat)):
                raise ClientAppError(f"the update of client {client} holds NaN or Inf: its training diverged")
            trained.append(flat)
        self._load(layout, kernels.weighted_mean(trained, shares))
        return dict(self.model.state_dict())

    def train_round(
        self,
        clients: Sequence[Batches],
        epochs: int = 1,
        lr: float = 0.01,
        *,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> float:
        """One round: every client trains from the same model, then the model becomes their mean.

        Parameters
        ----------
        clients : sequence of `num_clients` iterables of (inputs, targets)
            The clients' data. Who has none is left out.
        epochs, lr, criterion
            As in `client_update`.

        Returns
        -------
        float
            The mean training loss over all examples, measured on the way.

        Raises
        ------
        ClientAppError
            When their number is not `num_clients`, nobody has an example, or a training diverged.
        """
        if len(clients) != self.num_clients:
            raise ClientAppError(f"expected the data of {self.num_clients} clients, got {len(clients)}")
        results = [self._trained(data, epochs, lr, criterion) for data in clients]
        self.aggregate([(state, examples) for state, examples, _ in results])
        total = sum(examples for _, examples, _ in results)
        return math.fsum(examples * loss for _, examples, loss in results) / total

    def _trained(
        self,
        batches: Batches,
        epochs: int,
        lr: float,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
    ) -> tuple[dict[str, torch.Tensor], int, float]:
        """State dict, examples in one pass, mean loss of the last pass."""
        import torch

        if epochs < 1:
            raise ClientAppError(f"epochs must be ≥ 1, got {epochs}")
        measured = torch.nn.functional.cross_entropy if criterion is None else criterion
        local = copy.deepcopy(self.model).train()
        parameters = [parameter for parameter in local.parameters() if parameter.requires_grad]
        if not parameters:
            raise ClientAppError("the model has no parameter to train")
        device = parameters[0].device
        examples, total = 0, 0.0
        for epoch in range(epochs):
            before, examples, total = examples, 0, 0.0
            for inputs, targets in batches:
                if not len(targets):
                    continue
                loss = measured(local(inputs.to(device)), targets.to(device))
                # Plain SGD by hand: torch.optim would import torch's compiler, which takes seconds.
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        if gradient is not None:
                            parameter.sub_(gradient, alpha=lr)
                examples += len(targets)
                total += float(loss.detach()) * len(targets)
            if epoch and before and not examples:
                raise ClientAppError(
                    f"a client's data could be read once, and epochs is {epochs}: give a list or a DataLoader, "
                    "not an iterator"
                )
        state: dict[str, Any] = dict(local.state_dict())
        return state, examples, total / examples if examples else 0.0

    def _load(self, layout: Layout, flat: NDArray[np.float32]) -> None:
        import torch

        new = state_dict.unflatten(layout, flat)
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                if name in new:
                    tensor.copy_(torch.from_numpy(new[name]))


def _weighted(
    updates: Sequence[State] | Sequence[Update], weights: Sequence[float] | None
) -> tuple[dict[int, State], list[float]]:
    """The state dicts that count, by client, and their weights."""
    states: list[State] = []
    counts: list[float] = []
    update: Any  # a notebook may hand over anything
    for update in updates:
        if not isinstance(update, Mapping) and not (isinstance(update, Sequence) and len(update) == 2):
            raise ClientAppError(
                f"an update is a state dict, or a pair of it and a number of examples, got {type(update).__name__}"
            )
        state, examples = (update, 1) if isinstance(update, Mapping) else update
        states.append(state)
        counts.append(examples)
    chosen = counts if weights is None else [float(weight) for weight in weights]
    if len(chosen) != len(states):
        raise ClientAppError(f"{len(states)} updates need as many weights, got {len(chosen)}")
    if any(not 0 <= weight < math.inf for weight in chosen):
        raise ClientAppError(f"weights must be finite and ≥ 0, got {chosen}")
    kept = {client: state for client, state in enumerate(states) if chosen[client] > 0}
    if not kept:
        raise ClientAppError("no client has an example: there is nothing to average")
    # The exact sum rounds weights to 2⁻²⁰ and takes them up to 2³²: by a power of two, which changes nothing
    # else, the largest is brought near the top, so that shares such as 1e-6 keep their ratio.
    _, exponent = math.frexp(max(chosen))
    return kept, [math.ldexp(chosen[client], 30 - exponent) for client in kept]
