"""Any torch module under record-level privacy: per-example gradients from ``torch.func``.

    def loss(model, x, y):                       # of one record: x and y have a first dimension of 1
        return nn.functional.cross_entropy(model(x), y)

    app = PrivateTorchApp(Net, (inputs, labels), loss, LocalPrivacy(epsilon=3.0, …))

Rules that hold here:

* What mixes the records of a batch has no per-example gradient. Batch norm, and instance norm that tracks statistics,
  are refused by name; GroupNorm and LayerNorm do the same work.
* What is trained are the module's parameters that want a gradient. Everything else, buffers included, goes out as it
  came in, whatever a forward pass did to it: it would tell about the data past the noise.
* Parameters of other floating types are trained as float32 and cast for each forward pass; tied ones count once.
* Gradients of `microbatch` records are held at a time: about twice 4 · microbatch · parameters bytes.
* torch's generators follow from `task.seed` (`TorchApp`). Dropout draws from them; coins and noise do not.
* A loss that looks at other records than the one it is given, or raises on some, breaks the promise.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedmq.fedcore.errors import ClientAppError, PrivacyError
from fedmq.fedcore.layout import Flat

from ..client import Evaluation, Fit, TaskContext, Weights
from ..privacy import GradientSum, LocalPrivacy
from ..privacy.gradients import Rows, Trained
from ..privacy.sampling import Indices
from ..privacy.training import PrivateTraining
from .torch import EvaluateFunction, TorchApp

__all__ = ["PrivateTorchApp", "TorchGradients"]

Loss = Callable[..., torch.Tensor]
Data = Sequence[torch.Tensor]

MICROBATCH: Final = 128


class PrivateTorchApp:
    """A client app around a torch module and this worker's records.

    Parameters
    ----------
    model : torch.nn.Module, or a callable that makes one
        As for `TorchApp`.
    data : sequence of Tensor, or a callable that gives one
        Inputs, targets …, each with the records along its first dimension. A callable is called at the first fit.
    loss : callable
        ``loss(model, *record)`` is one record's loss, a 0-d tensor; `model` is called like the module.
    privacy : LocalPrivacy or GradientSum
        What is promised.
    evaluate : callable, optional
        As for `TorchApp`. The promise does not cover what it returns: measure on public data. Without it the app takes
        no such tasks.
    lr : float
        The rate of a local step; ``task.config["lr"]`` overrides it.
    microbatch : int
        How many records' gradients are held at a time.
    device : str or torch.device
        Where the module lives.

    Raises
    ------
    PrivacyError
        When the promise cannot be kept.

    Examples
    --------
    >>> privacy = GradientSum(max_grad_norm=1.0, sampling_rate=0.5)
    >>> data = (torch.zeros(4, 2), torch.zeros(4, 1))
    >>> app = PrivateTorchApp(lambda: nn.Linear(2, 1), data, lambda f, x, y: (f(x) - y).square().sum(), privacy)
    >>> app.kinds
    ('fit',)
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Data | Callable[[], Data],
        loss: Loss,
        privacy: LocalPrivacy | GradientSum,
        evaluate: EvaluateFunction | None = None,
        *,
        lr: float = 0.1,
        microbatch: int = MICROBATCH,
        device: str | torch.device = "cpu",
    ) -> None:
        self._app = TorchApp(model, _does_not_train, evaluate or _does_not_evaluate, device=device)
        self._data = data
        self._loss = loss
        self._microbatch = microbatch
        self._training = PrivateTraining(privacy, lr=lr)
        self._gradients: TorchGradients | None = None
        self.kinds: tuple[str, ...] = ("fit",) if evaluate is None else ("fit", "evaluate")

    def initial(self, task: TaskContext) -> Weights:
        """The module's own weights."""
        return self._app.initial(task)

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        """Train under the promise; see `PrivateTraining.fit`."""
        with self._app.seeded(task):
            module = self._app.load(weights)
            module.train()
            if self._gradients is None:
                data = self._data() if callable(self._data) else self._data
                self._gradients = TorchGradients(module, data, self._loss, microbatch=self._microbatch)
            return self._training.fit(self._gradients, weights, task)

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        """Load `weights` and measure."""
        return self._app.evaluate(weights, task)


class TorchGradients:
    """A module with its records; a `fedmq.worker.privacy.gradients.Gradients`.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters' values do not matter; what is not trained, does.
    data, loss, microbatch
        As for `PrivateTorchApp`.

    Raises
    ------
    ClientAppError
        When the module has layers without per-example gradients or nothing to train, or data is of no use.
    """

    def __init__(self, module: nn.Module, data: Data, loss: Loss, *, microbatch: int = MICROBATCH) -> None:
        _check_layers(module)
        if microbatch < 1:
            raise ClientAppError(f"microbatch must be 1 or more, got {microbatch}")
        if not data or any(t.ndim == 0 or len(t) != len(data[0]) for t in data):
            raise ClientAppError(
                "data must be tensors with the same number of records along the first dimension, got shapes "
                f"{[list(t.shape) for t in data]}"
            )
        self._module = module
        self._data = tuple(data)
        self._microbatch = microbatch
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ClientAppError("the module has no parameter that wants a gradient")
        names = {id(p): name for name, p in self._parameters.items()}
        self.trained = Trained(
            {name: tuple(p.shape) for name, p in self._parameters.items()},
            {
                alias: names[id(p)]
                for alias, p in module.named_parameters(remove_duplicate=False)
                if id(p) in names and alias != names[id(p)]
            },
        )

        def of_one(parameters: dict[str, torch.Tensor], *record: torch.Tensor) -> torch.Tensor:
            def call(*args: Any, **kwargs: Any) -> Any:
                return functional_call(module, parameters, args, kwargs)

            return loss(call, *(part[None] for part in record))

        self._of_each = vmap(grad(of_one), in_dims=(None, *(0 for _ in data)), randomness="different")

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self._data[0])

    def rows(self, flat: Flat, indices: Indices) -> Iterator[Rows]:
        """Each record's gradient at `flat`: float32[b, n] a time.

        Raises
        ------
        PrivacyError
            When torch cannot take them; why stands in the worker's own log.
        """
        parameters = self._at(flat)
        for chosen in torch.from_numpy(indices).split(self._microbatch):
            if len(chosen):  # split gives one empty part of nothing
                yield self._rows(parameters, chosen)

    def _rows(self, parameters: dict[str, torch.Tensor], chosen: torch.Tensor) -> Rows:
        device = next(iter(parameters.values())).device
        records = (part[chosen.to(part.device)].to(device) for part in self._data)
        try:
            gradients = self._of_each(parameters, *records)
        except RuntimeError as error:  # torch's text may quote shapes and values
            raise PrivacyError(
                "torch.func takes no per-example gradients of this module and loss; the worker's log says why"
            ) from error
        parts = [gradients[name].reshape(len(chosen), -1).to("cpu", torch.float32) for name in parameters]
        rows: Rows = torch.cat(parts, dim=1).numpy()
        return rows

    def _at(self, flat: Flat) -> dict[str, torch.Tensor]:
        parts = torch.from_numpy(flat).split(self.trained.sizes)
        return {
            name: part.view(p.shape).to(p.device, p.dtype)
            for part, (name, p) in zip(parts, self._parameters.items(), strict=True)
        }


def _check_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        tracks = isinstance(layer, _InstanceNorm) and layer.track_running_stats
        if tracks or isinstance(layer, _BatchNorm):
            raise ClientAppError(
                f"layer {name or 'model'!r} is a {type(layer).__name__}, which mixes the records of a batch, so that "
                "there is no gradient of one record; use nn.GroupNorm or nn.LayerNorm"
            )


def _does_not_train(module: nn.Module, task: TaskContext) -> int:
    raise ClientAppError("this app trains by per-example gradients alone")


def _does_not_evaluate(module: nn.Module, task: TaskContext) -> tuple[int, dict[str, float]]:
    raise ClientAppError("this app has no evaluate function")
