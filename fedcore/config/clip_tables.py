"""[privacy.adaptive_clip]: a clip norm that follows the updates, and when its noise can pay for that.

The same rules as in `tables`: a key is an attribute, its range stands in its type.
"""

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from fedmq.fedcore.errors import ConfigError

CLIP_MIN, CLIP_MAX = 1e-12, 1e12
"""Where a clip norm that moves is held, whatever comes: the grid of the exact sum stays far finer than the noise."""
COUNT_NOISE_SHARE = 20
"""What K, or D, is divided by where nothing is said of the count's noise: the paper's K/20."""


class AdaptiveClip(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The clip norm moves until a share of the updates is no longer than it; privacy.clip_norm is the first one."""

    form: ClassVar[str] = "a table, written [privacy.adaptive_clip]"

    quantile: Annotated[
        float, Meta(ge=0, le=1, description="Share of updates that the clip should leave as they are.")
    ] = 0.5
    rate: Annotated[
        float,
        Meta(gt=0, le=10, description="Each version moves ln(clip norm) by it, times how far off it is."),
    ] = 0.2
    count_noise: Annotated[
        float | None,
        Meta(gt=0, le=1e6, description="Noise on the count. Left out: mode.buffer, or divisor, / 20."),
    ] = None

    def deviation(self, divisor: float) -> float:
        """σ_b, the standard deviation of the count's noise."""
        return divisor / COUNT_NOISE_SHARE if self.count_noise is None else self.count_noise


def check_count_noise(table: AdaptiveClip, noise_multiplier: float, divisor: float) -> None:
    """Whether the count leaves something of the budget for the updates: z < 2 σ_b.

    Raises
    ------
    ConfigError
        Saying what it takes.
    """
    deviation = table.deviation(divisor)
    if noise_multiplier < 2 * deviation:
        return
    holds = f"{deviation:g}, a {COUNT_NOISE_SHARE}th of the divisor {divisor:g}"
    raise ConfigError(
        f"privacy.adaptive_clip.count_noise is {holds if table.count_noise is None else format(deviation, 'g')}; with "
        f"the noise multiplier {noise_multiplier:g} it must be above {noise_multiplier / 2:g}: the count of short "
        "updates would cost the whole budget. Raise it, or more updates a version, or a larger budget, take less noise"
    )
