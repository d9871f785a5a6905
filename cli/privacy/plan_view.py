"""A plan in words: the noise, its price, and how many workers it takes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .rows import row

if TYPE_CHECKING:
    from fedmq.fedcore.privacy.planning import Plan


def lines(plan: "Plan") -> Iterator[str]:
    """The plan for people."""
    yield "worker-level privacy: whether a worker, with all that it holds, took part"
    if plan.bandwidth:
        yield from row("noise multiplier", f"{plan.noise_multiplier:.2f} for all versions as one release")
    else:
        yield from row("noise multiplier", f"{plan.noise_multiplier:.2f}, rounded up")
    yield from row("epsilon", f"{_up(plan.epsilon)} of {plan.epsilon_budget:g}, at delta {plan.delta:g}")
    yield from row("accountant", plan.accountant)
    yield from row("neighbours", _neighbours(plan))
    yield from row("participation", _participation(plan))
    if plan.bandwidth:
        yield from row(
            "correlated noise",
            f"bandwidth {plan.bandwidth}; {plan.separation} versions from one participation of a worker to the next",
        )
    if plan.count_noise is not None:
        yield from row(
            "adaptive clip norm",
            f"noise {plan.count_noise:g} on the count of updates within it; what is left of the budget is noise "
            f"{plan.deviation:.4g} on the sum, in units of S",
        )
    if plan.delta >= 1 / plan.workers:
        yield from row(
            "WARNING",
            f"delta {plan.delta:g} is not below 1 / {plan.workers}: publishing one worker keeps that",
        )
    yield ""
    yield "what it does, in units of S, the clip norm of an update"
    yield from row("noise in a version", f"{plan.noise_per_coordinate:.3g} a coordinate; {_noise_norm(plan)}")
    yield from row(
        "signal in a version",
        f"1 at most, when all agree: {plan.signal_to_noise_best:.2g} of the noise; "
        f"{plan.signal_to_noise_unrelated:.2g} of it when updates have nothing in common",
    )
    yield from row(
        "after all versions",
        f"noise {plan.noise_after_all:.3g}, where {plan.versions} is the farthest that they can move the model: "
        f"a share of {plan.noise_share:.2g}",
    )
    yield from row("verdict", _verdict(plan))
    if plan.noise_share > plan.noise_level:
        yield from row(f"for a share of {plan.noise_level:g}", _needed(plan))
    yield from row("largest model", f"{plan.largest_model:,} parameters, of which nothing is left but noise")


def tables(plan: "Plan", mode: str) -> Iterator[str]:
    """What to put into federation.toml; nothing for what the broker does not do."""
    everybody = mode == "sync" and plan.participation == "arrivals" and plan.most == plan.versions
    in_rounds = plan.participation == "poisson" or everybody
    if not in_rounds and (plan.participation != "arrivals" or mode != "async"):
        return
    yield "[model]"
    yield 'initial = "first.safetensors"  # or an app, "module:attribute"; not a worker\'s'
    yield ""
    yield "[mode]"
    if in_rounds:
        yield 'kind = "sync"'
        yield f"min_available = {plan.workers}  # with fewer there a round is paid for all the same, and learns less"
        yield "deadline_s = 600.0  # who has not answered by then counts as zero"
    else:
        yield 'kind = "async"'
        yield f"buffer = {plan.cohort:g}"
    yield ""
    yield "[stop]"
    yield f"versions = {plan.versions}"
    yield ""
    yield "[privacy]"
    yield 'unit = "worker"'
    yield f"epsilon = {plan.epsilon_budget!r}"
    yield f"delta = {plan.delta!r}"
    yield _clip_norm(plan)
    if in_rounds:
        yield f"sampling_rate = {plan.sampling_rate or 1.0!r}"
        yield f"steps = {plan.versions}"
        yield f"divisor = {float(plan.cohort)!r}"
    else:
        yield f"max_participations = {plan.most}"
    yield f"noise_multiplier = {plan.noise_multiplier!r}"
    if plan.count_noise is not None:
        yield ""
        yield "[privacy.adaptive_clip]"
    if plan.bandwidth:
        yield ""
        yield "[privacy.correlated]"
        yield f"versions = {plan.versions}"
        yield f"min_separation = {plan.separation}"
        yield f"bandwidth = {plan.bandwidth}"


def _clip_norm(plan: "Plan") -> str:
    first = (
        "of the first version, which may be wrong"
        if plan.count_noise
        else "about the length of a usual update"
    )
    return f"clip_norm = 1.0  # S: {first}"


def refusal(plan: "Plan") -> str:
    """Why a plan is none."""
    size = f"{plan.parameters:,} parameters"
    return (
        f"refused: with {plan.workers} workers worker-level privacy at epsilon {plan.epsilon_budget:g} is noise for a "
        f"model of {size}{', about the smallest there is' if plan.assumed else ''}; it takes {_needed(plan)}, or a "
        "larger epsilon, or record-level privacy"
    )


def _up(epsilon: float) -> str:
    """Two decimals, never below."""
    return f"{-(-epsilon * 100 // 1) / 100:.2f}"


def _neighbours(plan: "Plan") -> str:
    if plan.adjacency == "replace-one":
        return "one worker is replaced by another (replace-one); the sum moves by 2 S at most"
    return "one worker's updates count as zero (zero-out); the sum moves by S at most"


def _participation(plan: "Plan") -> str:
    if plan.participation == "poisson":
        return (
            f"{plan.versions} rounds; a secret coin takes {plan.cohort:g} of {plan.workers} workers on average, and "
            "who is missing counts as zero"
        )
    if plan.participation == "fixed":
        return f"{plan.versions} rounds; a secret draw takes {plan.cohort:g} of {plan.workers} workers"
    return (
        f"{plan.versions} versions of {plan.cohort:g} out of {plan.workers} workers, each in {plan.most} at most; who "
        "takes part is public"
    )


def _noise_norm(plan: "Plan") -> str:
    assumed = ", a stand-in for --parameters" if plan.assumed else ""
    return f"{plan.noise_norm:.3g} in all, for {plan.parameters:,} parameters{assumed}"


def _verdict(plan: "Plan") -> str:
    match plan.verdict:
        case "drowned":
            return "DROWNED: the noise is as large as anything that the workers could teach"
        case "costly":
            return "costly: noise is a good part of what is learned, even if all workers agree"
        case "fine":
            return "the noise is small beside what workers that agree teach; how far they do, only training tells"


def _needed(plan: "Plan") -> str:
    return f"{plan.workers_needed:,} workers, {plan.cohort_needed:,} of them in a version"
