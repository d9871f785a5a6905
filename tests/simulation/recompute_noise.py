"""What privacy does to a version, computed a second time from the `[privacy]` table and what the journal says.

Coefficients, sensitivity and keys are made here as docs and papers say, by matrices and binomials and not by the
recurrences of the code; the streams come from the numpy definition of the kernels.
"""

import hashlib
import hmac
import math
import struct
from collections.abc import Sequence

import numpy as np

from fedmq.broker.rows import AcceptRow, VersionRow
from fedmq.fedcore.config import AdaptiveClip, AsyncMode, Config, Privacy, SampledPrivacy, WorkerPrivacy
from fedmq.fedcore.kernels.reference_noise import normals
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE

MASTER_KEY = b"m" * 32


class Noise:
    """The mechanism of a federation.

    Parameters
    ----------
    config : Config
        With a `[privacy]` table that says its noise multiplier and, with correlated noise, its bandwidth.
    """

    def __init__(self, config: Config) -> None:
        privacy = config.privacy
        assert privacy is not None
        z = privacy.noise_multiplier or math.nan
        self.keys: list[bytes] = []
        """Of the versions made so far, the last one's first."""
        self.coefficients = [1.0]
        self.is_correlated = False
        self.first_clip_norm: float | None = None
        """What version 0 leaves, where the clip norm is adapted."""
        self._clip: AdaptiveClip | None = None
        if isinstance(privacy, Privacy):
            self.bound = privacy.max_batch * privacy.max_grad_norm
            self.sigma = z * privacy.max_grad_norm
            self.denominator = privacy.divisor
            return
        self.bound, self._z = privacy.clip_norm, z
        if privacy.adaptive_clip is not None:
            self._clip, self.first_clip_norm = privacy.adaptive_clip, privacy.clip_norm
            assert self._clip.count_noise is not None
            self._z = (z**-2 - (2 * self._clip.count_noise) ** -2) ** -0.5
        self.sigma = self._z * self.bound
        if isinstance(privacy, SampledPrivacy):
            self.denominator = privacy.divisor
            return
        assert isinstance(config.mode, AsyncMode)
        self.denominator = float(config.mode.buffer)
        if privacy.correlated is not None:
            assert privacy.correlated.bandwidth is not None
            self.is_correlated = True
            self.coefficients = [root_coefficient(j) for j in range(privacy.correlated.bandwidth)]
            self.sigma *= sensitivity(privacy, self.coefficients)

    def add(self, total: list[int], made: VersionRow, rows: Sequence[AcceptRow]) -> None:
        """The noise of a version onto its sum, on the grid; and what its row must say of it."""
        close = 1e-9 if self.is_correlated or self._clip is not None else 0.0
        assert math.isclose(made.sigma, self.sigma, rel_tol=close), "sigma"
        used = self.keys[: len(self.coefficients) - 1]
        counted = None if self._clip is None else (self.bound, self._clip.count_noise or math.nan)
        key = noise_key(made, rows, used if self.is_correlated else None, counted)
        assert made.noise_key == key, "the noise of other rows"
        self.keys.insert(0, key)
        assert made.frac_bits is not None
        unit = 2.0**made.frac_bits
        for c, stream in zip(self.coefficients, self.keys, strict=False):
            sign = 1 if c > 0 else -1
            for start, values in normals(stream, NOISE_NONCE, 0, len(total)):
                steps = np.rint(values * (abs(c) * made.sigma * unit)).astype(np.int64).tolist()
                for j, step in enumerate(steps):
                    total[start + j] += sign * step

    def moves(self, made: VersionRow, rows: Sequence[AcceptRow]) -> None:
        """What a version leaves of the clip norm: the next one is made with that."""
        left = made.info.clip_norm
        assert (left is None) == (self._clip is None), "a clip norm that is not to move, or none where it is"
        if self._clip is None or left is None:
            return
        norms = [row.norm for row in rows if math.isfinite(row.norm)]
        count = sum(norm <= self.bound for norm in norms) - len(norms) / 2
        stream = hmac.digest(self.keys[0], b"fedmq count 1\x01", "sha256")
        (_, drawn), *_ = normals(stream, NOISE_NONCE, 0, 1)
        count += round(float(drawn[0]) * (self._clip.count_noise or math.nan) * 2**20) / 2**20
        off = count / self.denominator + 0.5 - self._clip.quantile
        expected = min(max(self.bound * math.exp(-self._clip.rate * off), 1e-12), 1e12)
        assert math.isclose(left, expected, rel_tol=1e-12), f"the clip norm is {left}, not {expected}"
        self.bound = left
        self.sigma = self._z * left


def root_coefficient(j: int) -> float:
    """Of x^j in √(1 − x), by binomials."""
    return math.comb(2 * j, j) / ((1 - 2 * j) * 4**j)


def sensitivity(privacy: WorkerPrivacy, coefficients: Sequence[float]) -> float:
    """How far a worker moves C x that is in as many versions, as soon again, as it may; from the first one on."""
    assert privacy.correlated is not None
    versions, step = privacy.correlated.versions, privacy.correlated.min_separation
    inverse = sum(np.diag(np.full(versions - j, c), -j) for j, c in enumerate(coefficients) if j < versions)
    columns = np.linalg.inv(inverse)
    return float(np.linalg.norm(columns[:, ::step][:, : privacy.max_participations].sum(axis=1)))


def noise_key(
    made: VersionRow,
    rows: Sequence[AcceptRow],
    used: Sequence[bytes] | None,
    counted: tuple[float, float] | None,
) -> bytes:
    """The key of a version's noise, as docs say it is derived: from the master key and all that is folded.

    `used`: keys of earlier noise that it takes back; None where the noise is not correlated. `counted`:
    the clip norm and the count's noise, where updates are counted as well.
    """
    frozen = hashlib.sha256(b"fedmq frozen 1" + struct.pack("<qd", made.frac_bits, made.sigma))
    if counted is not None:
        frozen.update(b"adaptive clip 1" + struct.pack("<dd", *counted))
    for pair in sorted((row.task, row.digest) for row in rows):
        for part in pair:
            frozen.update(struct.pack("<q", len(part)) + part)
    digest = frozen.digest()
    if used is not None:
        digest = hashlib.sha256(b"fedmq correlated 1" + digest + b"".join(used)).digest()
    secret = hmac.digest(b"fedmq noise 1", MASTER_KEY, "sha256")
    return hmac.digest(secret, struct.pack("<q", made.info.version) + digest + b"\x01", "sha256")
