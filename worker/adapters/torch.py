"""A torch module, a train function and an evaluate function, as a client app.

    def train(model, task):                      # one worker's training, in place
        ...
        return len(loader.dataset), {"loss": loss}

    def evaluate(model, task):
        return len(loader.dataset), {"loss": loss, "accuracy": accuracy}

    app = TorchApp(Net, train, evaluate)         # Net: a module, or a class or function that makes one

Rules that hold here:

* The module's state dict is the model: parameters and persistent buffers, under torch's names. Tied weights stay
  tied. Parameters of other floating types (bfloat16, float16, float64) travel as float32 and are cast back when
  they are loaded. Integer buffers (``num_batches_tracked``) are loaded with every model and never averaged.
* torch's generators are seeded from `task.seed` around every call, and restored afterwards: a task that is
  repeated gives the same result, and an embedding program keeps its own randomness. Seed Python's or numpy's
  yourself where the training uses them.
* An optimizer belongs into `train`: its state is one task's, nothing of it is kept from task to task.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.torch_state import to_arrays

from ..client import Evaluation, Fit, TaskContext, Weights

__all__ = ["TorchApp"]

Metrics = dict[str, float]
TrainFunction = Callable[[nn.Module, TaskContext], int | tuple[int, Metrics]]
EvaluateFunction = Callable[[nn.Module, TaskContext], tuple[int, Metrics]]


class TorchApp:
    """A client app around a torch module.

    Parameters
    ----------
    model : torch.nn.Module, or a callable that makes one
        A callable is called once, at the first task, under that task's seed.
    train : callable
        ``train(model, task)`` trains in place and returns the number of examples, or (examples, metrics). The
        module is in training mode.
    evaluate : callable
        ``evaluate(model, task)`` returns (examples, metrics) with ``"loss"`` among them. The module is in
        evaluation mode, and no gradients are recorded.
    device : str or torch.device
        Where the module lives.

    Examples
    --------
    >>> app = TorchApp(lambda: nn.Linear(2, 1), lambda model, task: 10, lambda model, task: (10, {"loss": 0.5}))
    >>> weights = app.initial(TaskContext(kind="init", seed=1))
    >>> {name: array.shape for name, array in weights.items()}
    {'weight': (1, 2), 'bias': (1,)}
    >>> app.fit(weights, TaskContext(kind="fit")).examples
    10
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        train: TrainFunction,
        evaluate: EvaluateFunction,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self._model = model
        self._train = train
        self._evaluate = evaluate
        self._device = torch.device(device)
        self._module: nn.Module | None = None

    def initial(self, task: TaskContext) -> Weights:
        """The module's own weights."""
        with self.seeded(task):
            return self._weights(self._made())

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Load `weights`, train, and read the state dict again."""
        with self.seeded(task):
            module = self.load(weights)
            module.train()
            result = self._train(module, task)
        examples, metrics = result if isinstance(result, tuple) else (result, {})
        return Fit(self._weights(module), examples, metrics)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Load `weights` and measure."""
        with self.seeded(task), torch.no_grad():
            module = self.load(weights)
            module.eval()
            result: object = self._evaluate(module, task)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ClientAppError(f"evaluate(model, task) must return (examples, metrics), got {result!r}")
        return Evaluation(*result)

    def _made(self) -> nn.Module:
        if self._module is None:
            made = self._model if isinstance(self._model, nn.Module) else self._model()
            if not isinstance(made, nn.Module):
                raise ClientAppError(f"the model must be a torch.nn.Module, got {type(made).__qualname__}")
            self._module = made.to(self._device)
        return self._module

    def load(self, weights: Weights) -> nn.Module:
        """The module, with `weights` in it."""
        module = self._made()
        state = {name: torch.from_numpy(_writable(array)) for name, array in weights.items()}
        try:
            module.load_state_dict(state)  # casts to each parameter's own type, and copies
        except RuntimeError as error:
            reasons = " ".join(str(error).split())
            raise ClientAppError(f"the federation's model does not fit the module: {reasons}") from error
        return module

    @staticmethod
    def _weights(module: nn.Module) -> Weights:
        arrays, _ = to_arrays(module.state_dict())
        return arrays

    @contextmanager
    def seeded(self, task: TaskContext) -> Iterator[None]:
        """torch's generators follow from the task within, and are as before afterwards."""
        devices = [] if self._device.type == "cpu" else [self._device]
        with torch.random.fork_rng(devices, device_type="cuda" if not devices else self._device.type):
            torch.manual_seed(task.seed)
            yield


def _writable(
    array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """torch warns about memory that it may not write, even if it only reads it."""
    return array if array.flags.writeable else array.copy()
