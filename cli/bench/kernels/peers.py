"""Who takes part besides fedmq and numpy: what is installed, and what a run must do without.

A library that is not there is listed as absent, and so is a kernel that the compiled backend lacks: nothing
is left out without a word.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, Final

from fedmq.fedcore import kernels

from .contest import Absent

__all__ = ["Peers"]


_ROOFLINES: Final = ("_read4", "_copy")  # said once, of the whole run


class Peers:
    """What can be measured here.

    Attributes
    ----------
    torch
        The module, or None.
    flwr
        The module with Flower's `aggregate` functions, or None.
    absent : list of Absent
        Grows as topics ask for what is not there.
    """

    def __init__(self) -> None:
        self.absent: list[Absent] = []
        self.torch = self._import("torch")
        self.flwr = self._import("flwr.server.strategy.aggregate")
        if not self.has_native:
            reason = str(kernels.info()["reason"]) or "FEDMQ_KERNELS is python"
            self.absent.append(Absent("all", "native", reason))
        if not self.has_roofline:
            reason = "no roofline without the native backend"
            if self.has_native:
                reason = "this build of the native backend cannot measure it"
            self.absent.append(Absent("all", "roofline", reason))

    @property
    def has_native(self) -> bool:
        """Whether compiled kernels are in use."""
        return kernels.backend == "native"

    @property
    def has_roofline(self) -> bool:
        """Whether the memory's limit can be measured."""
        return self.has_native and hasattr(kernels._native, "_read4")

    def native(self, name: str, topic: str) -> Callable[..., Any] | None:
        """A compiled kernel; None, and listed as absent, where there is none."""
        if not self.has_native:
            return None
        found: Callable[..., Any] | None = getattr(kernels._native, name, None)
        missing = Absent(topic, f"native {name}", "this build of the native backend lacks it")
        if found is None and name not in _ROOFLINES and missing not in self.absent:
            self.absent.append(missing)
        return found

    def reference(self, name: str) -> Callable[..., Any]:
        """The same kernel in numpy."""
        from fedmq.fedcore.kernels import reference

        found: Callable[..., Any] = getattr(reference, name)
        return found

    def set_threads(self, threads: int) -> None:
        """How many threads torch may use from now on; fedmq's kernels are told in each call."""
        if self.torch is not None and self.torch.get_num_threads() != threads:
            self.torch.set_num_threads(threads)

    def _import(self, name: str) -> Any:
        """A module; None, and listed as absent, where it is not installed or does not load."""
        library = name.partition(".")[0]
        reason = "not installed"
        if importlib.util.find_spec(library) is not None:
            try:
                return importlib.import_module(name)
            except ImportError as error:
                reason = f"does not load: {error}"
        self.absent.append(Absent("all", library, reason))
        return None
