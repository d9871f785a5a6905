"""An entry of the outbox: a finished task whose result the broker has not acknowledged yet."""

import msgspec

from fedmq.fedcore import wire


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What an OFFER says about a result, and which federation it belongs to.

    Attributes
    ----------
    task : bytes
        The task's id.
    federation : str
        As its WELCOME named it; another federation is never offered this.
    base : int
        The version that the task was on.
    size : int
        Bytes of payload; 0 for an evaluation, which has none.
    """

    task: bytes
    kind: wire.TaskKind
    federation: str
    base: int
    examples: int
    metrics: dict[str, float] = {}
    layout: bytes | None = None
    encoding: str | None = None
    size: int = 0
    digest: bytes | None = None

    @property
    def has_payload(self) -> bool:
        """Whether bytes go with it (perhaps none, for a model without floats)."""
        return self.kind != "evaluate"

    def offer(self) -> wire.Offer:
        """The OFFER of this entry."""
        return wire.Offer(
            task=self.task,
            kind=self.kind,
            base=self.base,
            examples=self.examples,
            metrics=self.metrics,
            layout=self.layout,
            encoding=self.encoding,
            size=self.size if self.has_payload else None,
            digest=self.digest,
        )
