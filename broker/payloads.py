"""What an update's bytes are held to, as its OFFER describes them and as they came. Pure.

A ``topk`` payload may hold as many values as were asked for (`aggregate.density`), and no more: a worker that sends
others would have the part in a version that only all of them together are meant to have. Its size bounds how many they
are before a byte has moved; how many they are exactly, its blocks say when all is here.
"""

import math

from fedmq.fedcore import codecs, kernels
from fedmq.fedcore.config import Aggregate

__all__ = ["measured", "size_fault"]


def size_fault(aggregate: Aggregate, encoding: codecs.Encoding, n: int, size: int | None) -> str:
    """Why an update of n values cannot be of this size in this encoding; empty when it can."""
    least, largest = codecs.size_range(encoding, n, aggregate.most(encoding, n))
    if size is not None and least <= size <= largest:
        return ""
    expected = f"{least}" if least == largest else f"{least} to {largest}"
    return f"size: {expected} bytes in {encoding}"


def measured(aggregate: Aggregate, encoding: str, n: int, payload: memoryview) -> tuple[float, str]:
    """The norm of a payload that is here as a whole, and why it is none of n values; empty when it is."""
    try:
        norm = math.sqrt(kernels.sum_squares(payload, encoding=encoding, n=n))
    except ValueError as error:  # which names the payload
        return math.nan, str(error)
    most = aggregate.most(encoding, n)
    return norm, "" if most is None else codecs.topk_excess(payload, most)
