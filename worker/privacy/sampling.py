"""Who is in a batch: one secret coin for each record and step.

Rules that hold here:

* Poisson sampling: each record is in with probability q, whatever the others do, so that a batch may be of any size
  and may be empty. It is what the accountant assumes; shuffled epochs or batches of a fixed size are not.
* Coins are 64 bits each, from SHAKE-256 under a key of the operating system. A coin shows heads with the probability
  q rounded *down* to a multiple of 2^-64.
* Record i has coin i, so that one record more or less at the end moves no other coin.
* A step with noise of its own gets a new key each time. A gradient sum gets one that follows from the worker's secret
  and the model: when a task comes again, after a crash or from a broker that was restored, it is the same sum. Coins
  thrown anew for one version would be a second release of it.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore.errors import ClientAppError
from fedmq.fedcore.layout import Flat

__all__ = ["KEY_BYTES", "MAX_RECORDS", "poisson_sample", "sum_key"]

Indices = NDArray[np.intp]

KEY_BYTES: Final = 32
MAX_RECORDS: Final = 1 << 24
"""What one worker may hold; also the public bound on a batch that fixes the grid of its exact sum."""


def poisson_sample(key: bytes, records: int, sampling_rate: float) -> Indices:
    """Throw the coins of one step.

    Parameters
    ----------
    key : bytes
        32 bytes that nobody else knows; for one step only.
    records : int
        n, 0 … `MAX_RECORDS`.
    sampling_rate : float
        q in (0, 1].

    Returns
    -------
    ndarray of intp
        The indices of the records that are in, ascending.

    Raises
    ------
    ClientAppError
        When there are too many records.
    """
    if not 0 <= records <= MAX_RECORDS:
        raise ClientAppError(f"a private worker may hold {MAX_RECORDS} records, got {records}")
    if sampling_rate == 1:
        return np.arange(records)
    import hashlib  # whose OpenSSL takes 3 ms to load

    coins = np.frombuffer(hashlib.shake_256(b"fedmq coins 1" + key).digest(8 * records), "<u8")
    return np.flatnonzero(coins < np.uint64(math.floor(sampling_rate * 2.0**64)))


def sum_key(secret: bytes, version: int, flat: Flat) -> bytes:
    """The key of the coins for the gradient sum of one version.

    Parameters
    ----------
    secret : bytes
        This worker's, 32 bytes.
    version : int
        The model's version ...
    flat : ndarray of float32
        ... and what it is: other federations have versions of the same numbers.
    """
    import hashlib

    mac = hashlib.blake2b(
        version.to_bytes(8, "big"), key=secret, digest_size=KEY_BYTES, person=b"fedmq sum 1"
    )
    mac.update(np.ascontiguousarray(flat).data)
    return mac.digest()
