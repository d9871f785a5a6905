"""A privacy statement in words."""

import textwrap
from collections.abc import Iterator
from decimal import ROUND_CEILING, Context
from typing import TYPE_CHECKING

from .rows import WIDTH, row

if TYPE_CHECKING:
    from fedmq.broker.sampled_promise import SampledPromise
    from fedmq.broker.statement import Promise, Statement, WorkerPromise

_UPWARDS = Context(prec=6, rounding=ROUND_CEILING)


def lines(statement: "Statement") -> Iterator[str]:
    """The statement for people."""
    at = "no version yet" if statement.version is None else f"version {statement.version}"
    end = f", finished: {statement.finished}" if statement.finished else ""
    yield f"federation {statement.federation} ({statement.id}), {at}{end}"
    if statement.promise is None:
        yield from textwrap.wrap(
            "NOTHING IS PROMISED: the federation has no [privacy] table. Its models may tell anything about the data "
            "that they were trained on. A worker that adds noise of its own has a promise of its own, which the "
            "broker cannot vouch for: it is in that worker's state folder.",
            WIDTH,
        )
        return
    yield from _promised(statement.promise)


def _promised(promise: "Promise | WorkerPromise | SampledPromise") -> Iterator[str]:
    yield ""
    yield "promise"
    yield from row("unit", f"a {promise.unit}")
    yield from row("neighbours", promise.adjacency)
    yield from row("mechanism", promise.mechanism)
    yield from row("constants", _constants(promise))
    yield from row("accountant", promise.accountant)
    yield from row("delta", f"{promise.delta:g}")
    yield from row("epsilon, budget", f"{promise.epsilon_budget:g}")
    yield from _spent(promise)
    if not promise.noise_agrees:
        yield from row(
            "WARNING",
            "the journal has releases with other noise than this: the promise does not hold for them",
        )
    for problem in _broken(promise):
        yield from row("WARNING", f"nothing is promised: {problem}")
    for title, items in (("assumed", promise.assumptions), ("not covered", promise.not_covered)):
        yield ""
        yield title
        for item in items:
            yield from textwrap.wrap(item, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _constants(promise: "Promise | WorkerPromise | SampledPromise") -> str:
    from fedmq.broker.sampled_promise import SampledPromise
    from fedmq.broker.statement import WorkerPromise

    z = f"noise multiplier {promise.noise_multiplier:g}"
    if isinstance(promise, WorkerPromise | SampledPromise):
        clip = f"clip norm {promise.clip_norm:g}"
        rule = promise.adaptive
        if rule is not None:
            z += f", of which the sum has {promise.update_noise:g} and the count noise {rule.count_noise:g}"
            clip += f" for the next version (to the quantile {rule.quantile:g} at the rate {rule.rate:g})"
        if isinstance(promise, SampledPromise):
            return (
                f"{z}, {clip}, noise {promise.sigma:g} on the sum, sampling rate {promise.sampling_rate:g}, "
                f"divisor {promise.divisor:g}"
            )
        constants = (
            f"{z}, {clip}, noise {promise.sigma:g} on the sum, divisor {promise.divisor:g}, "
            f"at most {promise.max_participations} versions a worker"
        )
        pattern = promise.correlated
        return (
            constants
            if pattern is None
            else (
                f"{constants}, {pattern.min_separation} apart, of {pattern.versions} in all; noise of "
                f"{pattern.bandwidth} versions mixed, sensitivity {pattern.sensitivity:.6g} clip norms"
            )
        )
    return (
        f"{z}, clip norm {promise.max_grad_norm:g}, noise {promise.sigma:g} on the sum, sampling rate "
        f"{promise.sampling_rate:g}, divisor {promise.divisor:g}, largest batch {promise.max_batch}"
    )


def _broken(promise: "Promise | WorkerPromise | SampledPromise") -> tuple[str, ...]:
    from fedmq.broker.statement import WorkerPromise

    if not isinstance(promise, WorkerPromise) or promise.correlated is None:
        return ()
    return promise.correlated.broken


def _spent(promise: "Promise | WorkerPromise | SampledPromise") -> Iterator[str]:
    from fedmq.broker.statement import WorkerPromise

    if not isinstance(promise, WorkerPromise):
        yield from row(
            "epsilon, planned", f"{_up(promise.epsilon_planned)} for {promise.releases_planned} releases"
        )
        yield from row("epsilon, spent", f"{_up(promise.epsilon_spent)} for {promise.releases} releases")
        return
    yield from row("epsilon, planned", f"{_up(promise.epsilon_planned)} for a worker at its cap")
    yield from row(
        "epsilon, spent", f"{_up(promise.epsilon_spent)} at most by a worker, in {promise.releases} releases"
    )
    for worker, charge in promise.workers.items():
        times = f"{charge.participations} version{'' if charge.participations == 1 else 's'}"
        yield f"    {worker}  {_up(charge.epsilon)} for {times}"


def _up(epsilon: float) -> str:
    """Six digits, never below."""
    return f"{_UPWARDS.create_decimal_from_float(epsilon):g}"
