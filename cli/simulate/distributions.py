"""Distributions as they are written on a command line: ``fixed:10s``, ``lognormal:10s,1.0`` …

=====================  ===========================================================
``fixed:A``            always A
``uniform:A,B``        anything from A to B
``exponential:MEAN``   memoryless
``lognormal:M,S``      median M; the logarithm has the standard deviation S
=====================  ===========================================================

Numbers of seconds may have a unit (``ms``, ``s``, ``min``, ``h``, ``d``), numbers of bytes as well (``KiB``, ``MiB``).
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from fedmq.fedcore.errors import ConfigError

SECONDS: Final[Mapping[str, float]] = {"": 1, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
BYTES: Final[Mapping[str, float]] = {
    "": 1,
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}

Kind = Literal["fixed", "uniform", "exponential", "lognormal"]

_TERMS: Final[Mapping[str, int]] = {"fixed": 1, "uniform": 2, "exponential": 1, "lognormal": 2}


class Distribution(msgspec.Struct, frozen=True):
    """One of the module's table; make it with `parse`."""

    kind: Kind
    a: float
    b: float = 0.0
    text: str = ""

    @property
    def mean(self) -> float:
        """The expectation."""
        match self.kind:
            case "uniform":
                return (self.a + self.b) / 2
            case "lognormal":
                return self.a * math.exp(self.b**2 / 2)
            case _:
                return self.a

    def sampler(self, rng: random.Random) -> Callable[[], float]:
        """What draws from it."""
        a, b = self.a, self.b
        match self.kind:
            case "fixed":
                return lambda: a
            case "uniform":
                return lambda: rng.uniform(a, b)
            case "exponential":
                return lambda: rng.expovariate(1.0 / a)
            case "lognormal":
                mu = math.log(a)
                return lambda: rng.lognormvariate(mu, b)


def parse(text: str, units: Mapping[str, float] = SECONDS) -> Distribution:
    """Read a distribution.

    Raises
    ------
    ConfigError
        When it is none: says which there are.

    Examples
    --------
    >>> parse("lognormal:10s,1.0").kind, parse("uniform:1min,1h").mean, parse("500ms").a
    ('lognormal', 1830.0, 0.5)
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        kind, rest = "fixed", text
    terms = rest.split(",")
    if len(terms) != _TERMS.get(kind, 0):
        raise ConfigError(
            f"{text!r} is no distribution; write fixed:10s, uniform:5s,20s, exponential:10s (its mean) or "
            "lognormal:10s,1.0 (its median, and the standard deviation of its logarithm)"
        )
    a = quantity(terms[0], units)
    b = 0.0
    if len(terms) > 1:
        b = quantity(terms[1], units if kind == "uniform" else {"": 1.0})
    if a <= 0 and not (kind in ("fixed", "uniform") and a == 0):
        raise ConfigError(f"{text!r}: {terms[0]} must be above 0")
    if kind == "uniform" and b < a:
        raise ConfigError(f"{text!r}: {terms[1]} is below {terms[0]}")
    return Distribution(kind, a, b, text)  # type: ignore[arg-type]


def quantity(text: str, units: Mapping[str, float] = SECONDS) -> float:
    """Read a number with a unit.

    Raises
    ------
    ConfigError
        When it is none.

    Examples
    --------
    >>> quantity("1.5h"), quantity("10 MiB", BYTES)
    (5400.0, 10485760.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ConfigError(f"{text!r} is no number{f' with one of {known}' if known else ''}")
    return float(match[1]) * units[match[2]]
