"""A user's own combination rule, named in the config as ``"module:attribute"``.

Rules that hold here:

- It is named by whoever starts the broker, never by a peer.
- It is an object with `minimum`, `seeded` and `prepare` (`combination.Rule`), or a class or function that makes
  one of nothing.
- What cannot be loaded is a `ConfigError`, before anything is accepted. What goes wrong in a fold is a `StateError`:
  the buffer stays frozen, and is folded when the rule has been put right. Both name the rule.
- What it gives back is checked before it is folded.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..app_loading import import_attribute
from ..apps import kind_of
from ..errors import ClientAppError, ConfigError, FedmqError, StateError
from .combination import Combination, Coordinates, Mixture, Rule, Updates

__all__ = ["UserRule", "load"]

T = TypeVar("T")


class UserRule(msgspec.Struct, frozen=True):
    """A rule of the user's, whose answers are checked."""

    spec: str
    rule: Rule

    @property
    def minimum(self) -> int:
        """The fewest updates that it combines."""
        return self.rule.minimum

    @property
    def seeded(self) -> bool:
        """Whether it uses the combined update of the version before."""
        return self.rule.seeded

    def prepare(self, updates: Updates) -> Combination:
        """What the user's `prepare` gives, if it can be folded.

        Raises
        ------
        StateError
            When it raised, or gave something else.
        """
        combination: object = self._call("prepare", lambda: self.rule.prepare(updates))
        match combination:
            case Mixture():
                self._check(combination, len(updates))
                return combination
            case Coordinates(rows=rows):
                if rows is not None and not (rows and set(rows) <= set(range(len(updates)))):
                    raise StateError(
                        f"aggregate.rule {self.spec}: rows must name some of 0 … {len(updates) - 1}, got {rows}"
                    )
                return Coordinates(lambda x: self._coordinates(combination, x), combination.rows)
        raise StateError(
            f"aggregate.rule {self.spec}: prepare must return a Mixture or Coordinates, got {kind_of(combination)}"
        )

    def _check(self, mixture: Mixture, k: int) -> None:
        numbers = [*mixture.weights, mixture.previous, mixture.denominator]
        ok = len(mixture.weights) == k and all(0 <= x <= 2**32 for x in numbers) and mixture.denominator > 0
        if not ok or (mixture.previous and not self.seeded):
            raise StateError(
                f"aggregate.rule {self.spec}: a Mixture must have {k} weights in 0 … 2^32, a denominator above 0, "
                f"and previous only where the rule is seeded; got {mixture}"
            )

    def _coordinates(self, combination: Coordinates, x: NDArray[np.float32]) -> NDArray[np.float32]:
        width = x.shape[1]
        with np.errstate(all="ignore"):
            found = self._call("its function", lambda: np.asarray(combination.function(x), np.float32))
        if found.shape != (width,) or not np.isfinite(found).all():
            raise StateError(
                f"aggregate.rule {self.spec}: its function must return {width} finite numbers for "
                f"{width} coordinates, got an array of shape {found.shape}"
            )
        return found

    def _call(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FedmqError:
            raise
        except Exception as error:  # the user's code: whatever it raises is his to read
            raise StateError(
                f"aggregate.rule {self.spec}: {what} raised {type(error).__name__}: {error}"
            ) from error


def load(spec: str) -> UserRule:
    """Import a rule, and make it where a class or a function is named.

    Raises
    ------
    ConfigError
        When it does not import, making it raised, or it is no rule.
    """
    try:
        target = import_attribute(spec, "rule")
    except ClientAppError as error:
        raise ConfigError(f"aggregate.rule: {error}") from error
    if isinstance(target, type) or (callable(target) and not hasattr(target, "prepare")):
        try:
            target = target()
        except Exception as error:  # the user's code: whatever it raises is his to read
            raise ConfigError(
                f"aggregate.rule: {spec}() raised {type(error).__name__}: {error}; a rule is made of nothing"
            ) from error
    minimum, seeded = getattr(target, "minimum", None), getattr(target, "seeded", None)
    if not callable(getattr(target, "prepare", None)):
        raise ConfigError(
            f"aggregate.rule: {spec} is {kind_of(target)}, which has no method prepare(updates)"
        )
    if not isinstance(minimum, int) or isinstance(minimum, bool) or minimum < 1:
        raise ConfigError(f"aggregate.rule: {spec} must have minimum, an integer ≥ 1; it is {minimum!r}")
    if not isinstance(seeded, bool):
        raise ConfigError(f"aggregate.rule: {spec} must have seeded, True or False; it is {seeded!r}")
    return UserRule(spec, cast(Rule, target))
