"""Print a digest of what every compiled kernel makes, as JSON: the same everywhere, or something is wrong.

Run as a program, so that the environment can choose the backend, the instruction-set level and the threads::

    FEDMQ_KERNELS=python python tests/parity/digests.py
    FEDMQ_ISA=base FEDMQ_NUM_THREADS=3 python tests/parity/digests.py
"""

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from fedmq.fedcore import kernels
from fedmq.fedcore.codecs import ENCODINGS

KEY, NONCE = bytes(range(32)), bytes(range(12))
SIZES = (0, 1, 17, 4097, 256 * 1024 + 1025)


def results(n: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each result for vectors of n elements."""
    rng = np.random.default_rng(n)
    x = [(rng.standard_normal(n) * 10.0 ** (i - 2)).astype(np.float32) for i in range(6)]
    payloads = []
    few = np.where(rng.random(n) < 0.01, x[0], np.float32(0))
    for encoding in ENCODINGS:
        values = few if encoding == "topk" else x[0]
        payloads.append(kernels.encode(values, encoding, key=KEY, nonce=NONCE))
        yield f"encode {encoding}", payloads[-1]
        yield f"decode {encoding}", kernels.decode(payloads[-1], encoding, n).tobytes()
        yield f"sum_squares {encoding}", kernels.sum_squares(payloads[-1], encoding=encoding).hex().encode()
    for mode in ("exact", "f64", "f32"):
        yield f"mean {mode}", kernels.weighted_mean(x, range(1, 7), mode=mode, max_norm=50.0).tobytes()
        yield (
            f"mixed {mode}",
            kernels.weighted_mean(payloads, [1, 2, 3, 4, 5], encoding=ENCODINGS, mode=mode).tobytes(),
        )
    many = [
        x[0] + np.float32(i) * x[1] for i in range(37)
    ]  # more than one network takes, and one group of pairs
    for name, rows, encoding in (("mixed", payloads, ENCODINGS), ("few", x, "f32"), ("many", many, "f32")):
        yield f"median {name}", kernels.median(rows, encoding=encoding).tobytes()
        yield f"trimmed_mean {name}", kernels.trimmed_mean(rows, 1, encoding=encoding).tobytes()
        yield f"distances {name}", kernels.pairwise_sq_distances(rows, encoding=encoding).tobytes()
    for truncate in (False, True):
        sums = kernels.Accumulator(n, frac_bits=24, offset=1024)
        for i, payload in enumerate(payloads):
            sums.add(payload, encoding=ENCODINGS[i], weight=i + 0.3, max_norm=9.0, truncate=truncate)
        sums.add_noise(1.25, key=KEY, nonce=NONCE)
        yield f"totals {truncate}", sums.totals().tobytes()
        yield f"quotient {truncate}", sums.mean(5.5).tobytes()
    kernels.add_gaussian_(x[1], 2.5, key=KEY, nonce=NONCE, offset=77)
    kernels.clip_(x[2], 0.125)
    kernels.sgd_(x[3], x[4], lr=0.1)
    kernels.momentum_(x[4], x[5], x[0], lr=0.1, beta=0.8)
    for i in range(1, 6):
        yield f"in place {i}", x[i].tobytes()
    for step, states in ((kernels.adagrad_, 1), (kernels.adam_, 2), (kernels.yogi_, 2), (kernels.fadas_, 3)):
        arrays = [np.abs(x[i]) for i in range(1 + states)]
        step(*arrays, x[5], lr=0.1)
        yield step.__name__, b"".join(array.tobytes() for array in arrays)


def main() -> None:
    """Print the digests and what made them."""
    digests = {f"{name}, n={n}": hashlib.sha256(data).hexdigest() for n in SIZES for name, data in results(n)}
    print(json.dumps({"info": kernels.info(), "digests": digests}))


if __name__ == "__main__":
    main()
