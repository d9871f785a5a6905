"""What broker and worker share: the wire, models, kernels, strategies, privacy.

Imports nothing from `fedmq.broker`, `fedmq.worker` or `fedmq.cli`, no socket library, and no torch at
module level. `FederatedAveraging` is loaded when it is asked for: a worker does not need it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .averaging import FederatedAveraging

__all__ = ["FederatedAveraging"]


def __getattr__(name: str) -> Any:
    if name == "FederatedAveraging":
        from .averaging import FederatedAveraging

        return FederatedAveraging
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
