"""A whole federation.toml, and what its tables must agree on.

Rules that hold here:

- No `Config` exists whose keys disagree: `Config.__post_init__` checks, whoever makes one.
- An error names the key, what it holds, what it may hold beside which other key, and why.
"""

from msgspec import Struct

from fedmq.fedcore.errors import ConfigError

from . import correlated_table
from .clip_tables import CLIP_MAX, CLIP_MIN, AdaptiveClip, check_count_noise
from .model_table import Model
from .rule_tables import UserRule, name_of
from .sampled_privacy import SampledPrivacy
from .tables import (
    MIB,
    Aggregate,
    AsyncMode,
    Evaluate,
    FedAsync,
    Federation,
    Mode,
    Network,
    Optimizer,
    Privacy,
    Security,
    Sgd,
    Stop,
    Storage,
    SyncMode,
    WorkerPrivacy,
)

MEMORY_MIN = 64 * MIB
"""What a broker needs besides uploads: the interpreter, kernels' tiles, connections."""


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole federation.toml. Make one with `load` or `parse`, which check ranges as well."""

    federation: Federation = Federation()
    model: Model = Model()
    mode: Mode = AsyncMode()
    task: dict[str, object] = {}
    aggregate: Aggregate = Aggregate()
    optimizer: Optimizer = Sgd()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    privacy: Privacy | WorkerPrivacy | SampledPrivacy | None = None
    storage: Storage = Storage()
    network: Network = Network()
    security: Security = Security()
    base_dir: str = "."  # not a key: the folder that paths in the file were relative to

    def __post_init__(self) -> None:
        _check_mode(self)
        _check_fedasync(self)
        _check_privacy(self)
        _check_rule(self)
        _check_network(self)
        if bool(self.stop.metric) != (self.stop.target is not None):
            raise ConfigError(
                f"stop.{'target' if self.stop.metric else 'metric'} is missing; "
                "stop.metric and stop.target go together"
            )

    @property
    def reach(self) -> int:
        """How far behind the current version a model is still needed: FedAsync mixes in an update with its base."""
        if isinstance(self.optimizer, FedAsync) and isinstance(self.mode, AsyncMode):
            return self.mode.max_staleness
        return 0

    @property
    def samples_workers(self) -> bool:
        """Whether a secret coin decides whom a round asks: then nothing that is shown may tell of whom."""
        return isinstance(self.privacy, SampledPrivacy)


def _check_mode(config: Config) -> None:
    mode = config.mode
    if not isinstance(mode, SyncMode) or config.samples_workers:
        return  # where a coin decides who is asked, `_check_privacy` says what these may be
    if 0 < mode.clients_per_round < mode.min_updates:
        raise ConfigError(
            f"mode.min_updates is {mode.min_updates}; it may be at most mode.clients_per_round, "
            f"which is {mode.clients_per_round}"
        )
    if mode.over_selection > 1 and mode.clients_per_round == 0:
        raise ConfigError(
            f"mode.over_selection is {mode.over_selection:g}; it needs mode.clients_per_round, "
            "which is 0 and asks everybody already"
        )


def _check_fedasync(config: Config) -> None:
    """Hold the rest of the file to one update a version, which is all that FedAsync is defined for."""
    if not isinstance(config.optimizer, FedAsync):
        return
    mode, rule = config.mode, name_of(config.aggregate.rule)
    needs: list[tuple[str, object, object, str]] = [
        ("mode.kind", mode.kind, "async", "it mixes in one update after the other, and a round is of many"),
        ("mode.buffer", getattr(mode, "buffer", 1), 1, "each update makes a version"),
        ("aggregate.rule", rule, "mean", "one update has no others to be compared with"),
        (
            "model.downlink",
            config.model.downlink,
            "f32",
            "it would mix in what a model lost on its way to a worker",
        ),
    ]
    _demand(needs, 'optimizer.kind "fedasync"')
    if config.privacy is not None:
        raise ConfigError(
            'optimizer.kind is "fedasync"; with [privacy] it must be another: a version is made of one update, and '
            "noise that hides all of it leaves nothing to learn from"
        )


def _check_privacy(config: Config) -> None:
    """Hold the rest of the file to what the accountant assumes."""
    privacy = config.privacy
    if privacy is None:
        return
    if isinstance(privacy, WorkerPrivacy):
        _check_worker_privacy(config)
        return
    if isinstance(privacy, SampledPrivacy):
        _check_sampled_privacy(config, privacy)
        return
    if not isinstance(config.mode, SyncMode):
        raise ConfigError('mode.kind is "async"; with [privacy] unit = "record" it must be "sync"')
    needs: list[tuple[str, object, object, str]] = [
        ("mode.clients_per_round", config.mode.clients_per_round, 0, "the sampling rate counts on everybody"),
        ("mode.min_updates", config.mode.min_updates, 0, "a round must not depend on who answered"),
        ("aggregate.rule", name_of(config.aggregate.rule), "mean", "the noise is that of a sum"),
        ("aggregate.weight", config.aggregate.weight, "uniform", "a record counts the same everywhere"),
        ("aggregate.encoding", config.aggregate.encoding, "f32", "an encoding would change the clipped sums"),
        ("aggregate.error_feedback", bool(config.aggregate.error_feedback), False, "it would evade the clip"),
        ("storage.durability", config.storage.durability, "fsync", "spent privacy must not be forgotten"),
        ("evaluate.fraction", config.evaluate.fraction, 0, "workers' metrics would leak; use evaluate.app"),
    ]
    _demand(needs, "[privacy]")
    _check_steps(config, privacy.steps)


def _check_worker_privacy(config: Config) -> None:
    """Likewise where the unit is a worker. Any encoding will do: the broker clips the numbers that it decodes."""
    mode = config.mode
    assert isinstance(config.privacy, WorkerPrivacy)
    if not isinstance(mode, AsyncMode):
        raise ConfigError(
            'mode.kind is "sync"; with a cap of participations, [privacy] unit = "worker", it must be "async": in '
            "rounds it is a secret coin that decides who takes part, with privacy.sampling_rate, steps and divisor"
        )
    if config.privacy.correlated is not None:
        correlated_table.check(config.privacy.correlated, config.stop.versions, config.privacy.adaptive_clip)
    _check_first_model(config)
    needs: list[tuple[str, object, object, str]] = [
        ("mode.one_per_worker", mode.one_per_worker, True, "two updates of a worker would weigh twice"),
        ("aggregate.rule", name_of(config.aggregate.rule), "mean", "the noise is that of a sum"),
        ("aggregate.weight", config.aggregate.weight, "uniform", "how many examples there are is private"),
        ("storage.durability", config.storage.durability, "fsync", "spent privacy must not be forgotten"),
        ("evaluate.fraction", config.evaluate.fraction, 0, "workers' metrics would leak; use evaluate.app"),
    ]
    _demand(needs, "[privacy]")
    if config.privacy.adaptive_clip is not None:
        _check_adaptive_clip(config.privacy, config.privacy.adaptive_clip, mode.buffer)


def _check_adaptive_clip(table: WorkerPrivacy | SampledPrivacy, clip: AdaptiveClip, divisor: float) -> None:
    """What the clip norm starts with, and what its noise can pay for, as far as the file says it."""
    if not CLIP_MIN <= table.clip_norm <= CLIP_MAX:
        raise ConfigError(
            f"privacy.clip_norm is {table.clip_norm:g}; with [privacy.adaptive_clip] it may be from {CLIP_MIN:g} to "
            f"{CLIP_MAX:g}: it never leaves this range"
        )
    if table.noise_multiplier is not None:  # one that is calibrated is checked when it is known
        check_count_noise(clip, table.noise_multiplier, divisor)


def _check_sampled_privacy(config: Config, privacy: SampledPrivacy) -> None:
    """Likewise where a secret coin decides who is asked: nothing else may, nor who answered."""
    mode = config.mode
    if not isinstance(mode, SyncMode):
        raise ConfigError(
            'mode.kind is "async"; with a sampling rate, [privacy] unit = "worker", it must be "sync": workers that '
            "come by themselves are no sample; there privacy.max_participations bounds what a worker spends"
        )
    _check_first_model(config)
    needs: list[tuple[str, object, object, str]] = [
        ("mode.clients_per_round", mode.clients_per_round, 0, "a coin for each worker decides who is asked"),
        (
            "mode.over_selection",
            mode.over_selection,
            1.0,
            "nobody is asked besides those that the coin takes",
        ),
        ("mode.min_updates", mode.min_updates, 0, "a round must not depend on who answered"),
        ("aggregate.rule", name_of(config.aggregate.rule), "mean", "the noise is that of a sum"),
        ("aggregate.weight", config.aggregate.weight, "uniform", "how many examples there are is private"),
        ("storage.durability", config.storage.durability, "fsync", "spent privacy must not be forgotten"),
        ("evaluate.fraction", config.evaluate.fraction, 0, "workers' metrics would leak; use evaluate.app"),
    ]
    _demand(needs, '[privacy] unit = "worker"')
    if not mode.deadline_s:
        raise ConfigError(
            'mode.deadline_s is 0, which is none; with [privacy] unit = "worker" there must be one: a round waits for '
            "all that it asked, and nobody else can be asked"
        )
    if privacy.adaptive_clip is not None:
        _check_adaptive_clip(privacy, privacy.adaptive_clip, privacy.divisor)
    _check_steps(config, privacy.steps)


def _check_first_model(config: Config) -> None:
    if config.model.source == "first-worker":
        raise ConfigError(
            'model.initial is "first-worker"; with [privacy] unit = "worker" it must name a file or an app: version 0 '
            "would be what one worker sent, neither clipped nor noised"
        )


def _check_steps(config: Config, steps: int) -> None:
    if config.stop.versions > steps:
        raise ConfigError(
            f"stop.versions is {config.stop.versions}; it may be at most privacy.steps, "
            f"which is {steps}: the budget is planned for that many"
        )


def _demand(needs: list[tuple[str, object, object, str]], beside: str) -> None:
    """Hold keys to the one value that they may have beside something else; each with the reason."""
    for key, holds, must, why in needs:
        if holds != must:
            raise ConfigError(f"{key} is {_show(holds)}; with {beside} it must be {_show(must)}: {why}")


def _check_rule(config: Config) -> None:
    """Hold the rest of the file to what the rule can work with."""
    rule, mode = config.aggregate.rule, config.mode
    name = name_of(rule)
    if not isinstance(rule, UserRule):
        check_minimum(config, name, rule.minimum, rule.needs)
    largest = mode.buffer if isinstance(mode, AsyncMode) else mode.clients_per_round
    if rule.most is not None and largest > rule.most:
        key = "mode.buffer" if isinstance(mode, AsyncMode) else "mode.clients_per_round"
        raise ConfigError(
            f'{key} is {largest}; with aggregate.rule "{name}" it may be at most {rule.most}: it compares every '
            "update with every other"
        )
    wrong = []  # both at once: who changes the rule in a file that names every key meets both
    if rule.uniform and config.aggregate.weight != "uniform":
        wrong.append(
            f'aggregate.weight is "{config.aggregate.weight}"; with aggregate.rule "{name}" it must be "uniform": '
            "how many examples a worker has is its own claim"
        )
    if rule.one_per_worker and isinstance(mode, AsyncMode) and not mode.one_per_worker:
        wrong.append(
            f'mode.one_per_worker is false; with aggregate.rule "{name}" it must be true: '
            "one worker could be the majority of a buffer"
        )
    if wrong:
        raise ConfigError("; and ".join(wrong))


def check_minimum(config: Config, rule: str, minimum: int, needs: str) -> None:
    """Whether every buffer or round will have as many updates as its rule needs.

    A round ends with min(min_updates, clients_per_round, those who are there) at the least, and those are never
    fewer than min_available.

    Raises
    ------
    ConfigError
        Naming the key under which a buffer could be smaller.
    """
    mode = config.mode
    if isinstance(mode, AsyncMode):
        holds = [("mode.buffer", mode.buffer)]
    else:
        holds = [("mode.min_available", mode.min_available)]
        holds += [("mode.clients_per_round", mode.clients_per_round)] if mode.clients_per_round else []
        holds += [("mode.min_updates", mode.min_updates)] if mode.min_updates else []
    for key, value in holds:
        if value < minimum:
            raise ConfigError(
                f'{key} is {value}; with aggregate.rule "{rule}" it must be at least {minimum}: it needs {needs}'
            )


def _check_network(config: Config) -> None:
    network, security = config.network, config.security
    if network.lease_s <= 2 * network.beat_s:
        raise ConfigError(
            f"network.lease_s is {network.lease_s:g}; it must be more than twice network.beat_s, "
            f"which is {network.beat_s:g}"
        )
    if 0 < network.memory_limit < 2 * network.credit_budget + MEMORY_MIN:
        raise ConfigError(
            f"network.memory_limit is {network.memory_limit} bytes; it must be 0 or at least "
            f"{2 * network.credit_budget + MEMORY_MIN}: twice network.credit_budget, and {MEMORY_MIN} for the rest"
        )
    if network.credit_budget < network.block:
        raise ConfigError(
            f"network.credit_budget is {network.credit_budget} bytes; it must be at least network.block, "
            f"which is {network.block}"
        )
    if security.allowlist and not security.keys:
        raise ConfigError(
            f'security.allowlist is "{security.allowlist}"; it needs security.keys, which is empty'
        )
    if not (config.federation.loopback or security.keys or security.insecure):
        raise ConfigError(
            f'federation.bind is "{config.federation.bind}", which others can reach; set security.keys, so that '
            "only workers that you allow can join, or security.insecure = true (or --insecure) to let anybody "
            "join and read"
        )
    if not (network.http_loopback or network.http_public):
        raise ConfigError(
            f'network.http is "{network.http}", which others can reach; bind to loopback and let a proxy or an '
            "agent on this machine pass it on, or set network.http_public = true to let anybody read it"
        )


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
