"""`fedmq privacy`: plan worker-level privacy, and state what a federation promises and has spent."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.fedcore.errors import PrivacyError

from ..logs import log_options
from ..state_folder import state_argument

if TYPE_CHECKING:
    from fedmq.fedcore.privacy.planning import Arrivals, Fixed, Poisson


_UNSUPPORTED = ["", "no [privacy] table: the broker of this version makes no such rounds"]


@click.group()
def privacy() -> None:
    """Plan a privacy budget, and report what was spent.

    \b
    Example:
      fedmq privacy plan --workers 200 --buffer 20 --versions 100 --epsilon 8 --delta 1e-5
      fedmq privacy report state
    """


@privacy.command("plan")
@click.option("--workers", type=click.IntRange(1), required=True, help="N, how many there are.")
@click.option("--versions", type=click.IntRange(1), required=True, help="T, how many are made at most.")
@click.option("--epsilon", type=float, required=True, help="Each worker's budget for the whole run.")
@click.option("--delta", type=float, required=True, help="Well below 1 / N, such as 1e-5.")
@click.option(
    "--mode",
    type=click.Choice(["async", "sync"]),
    default="async",
    show_default=True,
    help="Workers come by themselves, or are asked in rounds.",
)
@click.option("--buffer", type=click.IntRange(1), help="async: K, updates that make a version.")
@click.option(
    "--max-participations",
    type=click.IntRange(1),
    help="k, versions that one worker may be in.  [default: the fewest that do]",
)
@click.option(
    "--sampling-rate", type=float, help="sync: a secret coin takes each worker with this probability."
)
@click.option(
    "--clients-per-round", type=click.IntRange(1), help="sync: a secret draw takes so many workers."
)
@click.option("--correlated", is_flag=True, help="async: noise that later versions take back (BISR).")
@click.option("--bandwidth", type=click.IntRange(1), help="With --correlated: versions whose noise is mixed.")
@click.option(
    "--min-separation",
    type=click.IntRange(1),
    help="With --correlated: versions from one participation to the next.  [default: N / 2K]",
)
@click.option(
    "--adaptive-clip",
    is_flag=True,
    help="S follows the updates, and their count has noise: a 20th of K, or of how many a coin takes.",
)
@click.option(
    "--parameters", type=click.IntRange(1), help="n, of the model.  [default: 650, a very small one]"
)
@click.option(
    "--noise-level",
    type=click.FloatRange(0, min_open=True),
    default=0.3,
    show_default=True,
    help="The share of noise in what the model learned that the workers needed are counted for.",
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object instead of text.")
@log_options
def plan_command(
    workers: int,
    versions: int,
    epsilon: float,
    delta: float,
    mode: str,
    buffer: int | None,
    max_participations: int | None,
    sampling_rate: float | None,
    clients_per_round: int | None,
    correlated: bool,
    bandwidth: int | None,
    min_separation: int | None,
    adaptive_clip: bool,
    parameters: int | None,
    noise_level: float,
    as_json: bool,
) -> None:
    """Say how much noise worker-level privacy takes, and what it does to a model.

    Worker-level privacy hides whether a worker, with all that it holds, took part. The answer is z, the noise on a
    sum of clipped updates in units of the clip norm S: rounded up to two decimals, with the epsilon that this z
    really costs. Then what nobody can avoid: how much of what the model learns will be noise, even if all workers
    agreed, and how many workers it takes for less.

    \b
    async                       no coin decides who comes, so nothing is gained by chance: a worker that is in k
                                versions pays for k. Fewer versions per worker, or more workers, cost less noise.
    sync --sampling-rate Q      secret coins of the broker gain much: the missing count as zero.
    sync --clients-per-round M  a secret draw; neighbours replace a worker by another, at twice the noise.
    sync                        everybody is in every version.

    Where noise drowns the model the plan is refused, with exit code 8: a promise at the price of the model is none.

    \b
    Example:
      fedmq privacy plan --workers 200 --buffer 20 --versions 100 --epsilon 8 --delta 1e-5
      fedmq privacy plan --workers 5000 --mode sync --sampling-rate 0.05 --versions 200 \\
                         --epsilon 4 --delta 1e-6 --parameters 79510
    """
    from msgspec import to_builtins

    from fedmq.fedcore.privacy.planning import plan

    from . import plan_view

    how = _how(
        mode,
        workers,
        versions,
        buffer=buffer,
        most=max_participations,
        rate=sampling_rate,
        cohort=clients_per_round,
        bandwidth=(bandwidth or 0) if correlated else None,
        separation=min_separation,
    )
    if not correlated and (bandwidth or min_separation):
        raise click.UsageError("--bandwidth and --min-separation go with --correlated.")
    found = plan(
        how,
        workers=workers,
        versions=versions,
        epsilon_target=epsilon,
        delta=delta,
        parameters=parameters,
        noise_level=noise_level,
        adaptive_clip=adaptive_clip,
    )
    if as_json:
        click.echo(json.dumps(to_builtins(found) | {"verdict": found.verdict}, indent=2))
    else:
        click.echo("\n".join(plan_view.lines(found)))
    if found.verdict != "drowned" and not as_json:
        pasted = list(plan_view.tables(found, mode))
        click.echo("\n".join(["", "for federation.toml", *pasted] if pasted else _UNSUPPORTED))
    if found.verdict == "drowned":
        raise PrivacyError(plan_view.refusal(found))


def _how(
    mode: str,
    workers: int,
    versions: int,
    *,
    buffer: int | None,
    most: int | None,
    rate: float | None,
    cohort: int | None,
    bandwidth: int | None,
    separation: int | None,
) -> "Arrivals | Poisson | Fixed":
    from fedmq.fedcore.privacy.planning import Arrivals, Fixed, Poisson

    if mode == "async":
        if rate is not None or cohort is not None:
            raise click.UsageError(
                "--sampling-rate and --clients-per-round go with --mode sync: workers that come by themselves "
                "are no sample."
            )
        if buffer is None:
            raise click.UsageError("--mode async needs --buffer.")
        return Arrivals(buffer=buffer, most=most, bandwidth=bandwidth, separation=separation)
    if buffer is not None or bandwidth is not None:
        raise click.UsageError("--buffer and --correlated go with --mode async.")
    if rate is not None and cohort is not None:
        raise click.UsageError("--sampling-rate and --clients-per-round exclude each other.")
    if rate is None and cohort is None:
        return Arrivals(buffer=workers, most=versions if most is None else most)
    if most is not None:
        raise click.UsageError("--max-participations caps nobody whom a secret draw takes.")
    return Poisson(rate=rate) if rate is not None else Fixed(cohort=cohort or 0)


@privacy.command("report")
@state_argument
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object instead of text.")
@log_options
def report_command(state: Path, as_json: bool) -> None:
    """State what a federation promises, on what assumptions, and what has been spent.

    It is written from the journal and the config in the state folder, beside a running broker or without one, and
    computes epsilon anew: an auditor needs nothing else. STATE_DIR may also be the federation.toml. Without a
    [privacy] table it says that nothing is promised.

    \b
    Example:
      fedmq privacy report state
      fedmq privacy report state --json > statement.json
    """
    from msgspec import to_builtins

    from fedmq.broker.statement import statement

    from . import statement_view

    found = statement(state)
    if as_json:
        click.echo(json.dumps(to_builtins(found), indent=2))
    else:
        click.echo("\n".join(statement_view.lines(found)))
