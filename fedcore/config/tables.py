"""The tables and keys of federation.toml, their defaults, and what each may hold.

This is the single source: the reader checks against these types, `fedmq init` writes these descriptions as
comments, and a test holds docs/configuration.md to them. The rules:

- An attribute has its key's name; a table is an attribute of `Config`, which stands in `whole`.
- A limit that is off is 0 (or "" for text): TOML has no null.
- A range stands in the type (`Meta(ge=1)`), and is checked by `reading.parse`. What two keys must agree on is checked
  in `whole`.
- Sizes are bytes; a file may say "1 MiB". Times are seconds and end in `_s`.
- A path in a file is relative to that file's folder, and absolute here.
"""

import ipaddress
import math
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from .clip_tables import AdaptiveClip
from .correlated_table import Correlated
from .rule_tables import RULES, Mean, Rule

MIB = 1 << 20
APP_PATTERN = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
RULE_FORM = (
    ", ".join(f'"{kind}"' for kind in RULES)
    + ', a table such as {kind = "krum", byzantine = 2}, or your own "module:attribute"'
)
_LOSS_WORDS = ("loss", "error", "perplexity", "rmse", "mse", "mae")

_SIZE = {"as": "size"}  # may be written "1 MiB"
_PATH = {"as": "path"}  # relative to the file's folder
_APP = {"form": '"module:attribute"'}  # "form": a pattern in words


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """What all tables have in common: immutable and strict."""


_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
_HOST_PORT = rf"([^\s:/\[\]]+|\[[0-9A-Fa-f:.%]+\]):({_PORT}|\*)"
"""libzmq takes a port modulo 65536 and says nothing."""


class Federation(Table, frozen=True):
    """What this federation is called and where it lives."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            extra={"form": "1 to 64 letters, digits, '.', '_' and '-'"},
            description="Workers see it.",
        ),
    ] = "federation"
    bind: Annotated[
        str,
        Meta(
            pattern=rf"^(tcp://{_HOST_PORT}|ipc://\S+)$",
            extra={"form": '"tcp://host:port" (a port up to 65535, or *) or "ipc://path"'},
            description="Where workers connect; beyond loopback see [security].",
        ),
    ] = "tcp://127.0.0.1:5560"
    state: Annotated[
        str, Meta(min_length=1, extra=_PATH, description="Folder of all that must survive a restart.")
    ] = "state"
    seed: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="Tasks' seeds derive from it: a run can be repeated.")
    ] = 0

    @property
    def loopback(self) -> bool:
        """Whether `bind` can be reached from this machine only."""
        if self.bind.startswith("ipc://"):
            return True
        return _is_loopback(self.bind.removeprefix("tcp://"))


class AsyncMode(Table, frozen=True, tag_field="kind", tag="async"):
    """A new version whenever the buffer is full; nobody waits for the slowest (FedBuff)."""

    kind: ClassVar[str] = "async"

    buffer: Annotated[int, Meta(ge=1, le=100_000, description="Updates that make a version.")] = 10
    concurrency: Annotated[int, Meta(ge=1, description="Fit tasks that may be out at the same time.")] = 100
    max_staleness: Annotated[
        int, Meta(ge=0, le=1_000_000, description="An update that missed more versions is refused.")
    ] = 20
    staleness: Annotated[
        Literal["constant", "polynomial", "hinge"],
        Meta(description="How weight falls with missed versions."),
    ] = "polynomial"
    exponent: Annotated[
        float, Meta(ge=0, le=100, description="a of the polynomial: weight (1 + missed)^-a.")
    ] = 0.5
    hinge_slope: Annotated[
        float, Meta(gt=0, description="a of the hinge: beyond b, weight 1 / (a (missed - b) + 1).")
    ] = 10.0
    hinge_threshold: Annotated[
        int, Meta(ge=0, description="b of the hinge: up to it an update counts in full.")
    ] = 4
    tasks_per_worker: Annotated[
        int, Meta(ge=1, description="Fit tasks that one worker may have at a time, of all that are out.")
    ] = 16
    one_per_worker: Annotated[bool, Meta(description="At most one update of a worker in a buffer.")] = False


class SyncMode(Table, frozen=True, tag_field="kind", tag="sync"):
    """Rounds: ask a cohort, wait for its updates or the deadline (FedAvg)."""

    kind: ClassVar[str] = "sync"

    min_available: Annotated[int, Meta(ge=1, description="Workers that must be there to open a round.")] = 2
    clients_per_round: Annotated[
        int, Meta(ge=0, description="Updates that a round is after; 0 asks everybody there.")
    ] = 0
    over_selection: Annotated[
        float, Meta(ge=1, le=10, description="Ask this many times more; the first to finish count.")
    ] = 1.0
    min_updates: Annotated[int, Meta(ge=0, description="Quorum at the deadline; 0 means all of them.")] = 0
    deadline_s: Annotated[float, Meta(ge=0, description="A round's time; 0 means no deadline.")] = 600.0


Mode = AsyncMode | SyncMode


class Aggregate(Table, frozen=True):
    """How the updates of a buffer become one."""

    rule: Annotated[
        Rule, Meta(extra={"form": RULE_FORM}, description="How updates are combined: see docs/strategies.md.")
    ] = Mean()
    weight: Annotated[
        Literal["examples", "uniform"],
        Meta(description="How much each update counts."),
    ] = "examples"
    max_update_norm: Annotated[
        float, Meta(gt=0, le=1e30, description="An update with a larger L2 norm is rejected.")
    ] = 1e6
    max_examples: Annotated[
        int,
        Meta(ge=1, le=10**9, description="An update that claims more is rejected; bounds its weight."),
    ] = 100_000_000
    encoding: Annotated[
        Literal["f32", "f16", "bf16", "i8", "topk"],
        Meta(
            description="4, 2, 2 or about 1 byte a parameter; topk: 3 or 4 bytes for each value that is kept."
        ),
    ] = "f32"
    density: Annotated[
        float, Meta(gt=0, le=1, description="Share of an update's values, its largest, that topk keeps.")
    ] = 0.01
    error_feedback: Annotated[
        bool | None,
        Meta(description="Send what the encoding left out with the next update. Left out: with topk only."),
    ] = None

    @property
    def feeds_back(self) -> bool:
        """Whether workers keep what the encoding leaves out."""
        if self.encoding == "f32":
            return False
        return self.encoding == "topk" if self.error_feedback is None else self.error_feedback

    def keep(self, n: int) -> int:
        """How many of n values topk keeps."""
        return max(math.ceil(self.density * n), 1)

    def most(self, encoding: str, n: int) -> int | None:
        """How many of n values an update may hold; None: all. Only topk is bounded, where it is what is asked for."""
        return self.keep(n) if encoding == "topk" == self.encoding else None


_Lr = Annotated[float, Meta(gt=0, description="Server learning rate.")]
_Beta1 = Annotated[float, Meta(ge=0, lt=1, description="Decay of the first moment.")]
_Beta2 = Annotated[float, Meta(ge=0, lt=1, description="Decay of the second moment.")]
_Eps = Annotated[float, Meta(gt=0, description="Added to the root of the second moment.")]
_Correct = Annotated[bool, Meta(description="Divide the moments by 1 - beta^t, as Adam's paper does.")]


class Sgd(Table, frozen=True, tag_field="kind", tag="sgd"):
    """w += lr * d; with lr = 1 this is FedAvg."""

    kind: ClassVar[str] = "sgd"
    lr: _Lr = 1.0


class Momentum(Table, frozen=True, tag_field="kind", tag="momentum"):
    """v = beta * v + d; w += lr * v (FedAvgM)."""

    kind: ClassVar[str] = "momentum"
    lr: _Lr = 1.0
    beta: Annotated[float, Meta(ge=0, lt=1, description="How much of the last step is kept.")] = 0.9


class Adagrad(Table, frozen=True, tag_field="kind", tag="adagrad"):
    """v += d²; w += lr * d / (√v + eps)."""

    kind: ClassVar[str] = "adagrad"
    lr: _Lr = 0.01
    eps: _Eps = 1e-3


class Adam(Table, frozen=True, tag_field="kind", tag="adam"):
    """Adam on the combined update (FedAdam)."""

    kind: ClassVar[str] = "adam"
    lr: _Lr = 0.01
    beta1: _Beta1 = 0.9
    beta2: _Beta2 = 0.99
    eps: _Eps = 1e-3
    bias_correction: _Correct = False


class Yogi(Table, frozen=True, tag_field="kind", tag="yogi"):
    """Adam whose second moment moves by a bounded step (FedYogi)."""

    kind: ClassVar[str] = "yogi"
    lr: _Lr = 0.01
    beta1: _Beta1 = 0.9
    beta2: _Beta2 = 0.99
    eps: _Eps = 1e-3
    bias_correction: _Correct = False


class Fadas(Table, frozen=True, tag_field="kind", tag="fadas"):
    """Delay-adaptive AMSGrad for asynchronous federations (FADAS)."""

    kind: ClassVar[str] = "fadas"
    lr: _Lr = 0.01
    beta1: _Beta1 = 0.9
    beta2: _Beta2 = 0.99
    eps: _Eps = 1e-3
    delay_threshold: Annotated[int, Meta(ge=1, description="With staler updates the step shrinks.")] = 5


class FedAsync(Table, frozen=True, tag_field="kind", tag="fedasync"):
    """w = (1 - a) w + a x with a = alpha * s(missed): each trained model x is mixed in by itself (FedAsync)."""

    kind: ClassVar[str] = "fedasync"
    alpha: Annotated[
        float, Meta(gt=0, le=1, description="How far a fresh update moves the model to what was trained.")
    ] = 0.6


Optimizer = Sgd | Momentum | Adagrad | Adam | Yogi | Fadas | FedAsync


class Evaluate(Table, frozen=True):
    """How often versions are measured, and by whom."""

    every: Annotated[int, Meta(ge=0, description="Evaluate every n-th version; 0 means never.")] = 1
    fraction: Annotated[
        float, Meta(ge=0, le=1, description="Share of the idle workers that is asked; 0 asks none.")
    ] = 1.0
    deadline_s: Annotated[float, Meta(gt=0, description="Workers that take longer are left out.")] = 600.0
    app: Annotated[
        str,
        Meta(
            pattern=rf"^({APP_PATTERN})?$",
            extra=_APP,
            description='An app "module:attribute" that evaluates beside the broker.',
        ),
    ] = ""


class Stop(Table, frozen=True):
    """When it is enough: whichever comes first. Nothing set means: when an operator stops it."""

    versions: Annotated[int, Meta(ge=0, description="Finish with this version; 0 means no limit.")] = 0
    metric: Annotated[str, Meta(max_length=128, description="Finish when this metric reaches target.")] = ""
    target: Annotated[
        float | None, Meta(description="Reached from below, or from above by losses and errors.")
    ] = None
    seconds: Annotated[float, Meta(ge=0, description="Finish after this long; 0 means no limit.")] = 0.0

    def reached(self, value: float) -> bool:
        """Whether `value` of `metric` is at its target."""
        if self.target is None:
            return False
        return value <= self.target if lower_is_better(self.metric) else value >= self.target


class Privacy(Table, frozen=True, kw_only=True):
    """Record-level differential privacy; the noise is drawn once a version, by the trusted broker.

    Each fit returns one sum of clipped per-example gradients over a Poisson sample of its records. The
    broker adds the sums and N(0, (noise_multiplier · max_grad_norm)²), and divides by `divisor`.
    """

    unit: Annotated[Literal["record"], Meta(description="Whose presence is hidden.")] = "record"
    epsilon: Annotated[float, Meta(gt=0, le=1000, description="Budget of the whole run.")]
    delta: Annotated[float, Meta(gt=0, lt=1, description="Far below one over the number of records.")]
    max_grad_norm: Annotated[float, Meta(gt=0, description="Each record's gradient is clipped to it.")]
    sampling_rate: Annotated[float, Meta(gt=0, le=1, description="Probability that a record is in a sample.")]
    steps: Annotated[int, Meta(ge=1, description="Versions that the budget is planned for.")]
    divisor: Annotated[float, Meta(gt=0, description="A public constant: sampling_rate x all records.")]
    max_batch: Annotated[int, Meta(ge=1, description="Largest sample of one worker; larger sums shrink.")]
    noise_multiplier: Annotated[
        float | None, Meta(gt=0, le=1e6, description="Left out: calibrated from the keys above.")
    ] = None


class WorkerPrivacy(Table, frozen=True, kw_only=True):
    """Worker-level differential privacy: all that one worker holds; it takes many workers.

    The broker clips each update to `clip_norm`, adds N(0, (noise_multiplier · clip_norm)²) to the sum of a full
    buffer, and divides by the buffer's size. A worker has a part in at most `max_participations` versions.
    """

    unit: Annotated[Literal["worker"], Meta(description="Whose presence is hidden.")] = "worker"
    epsilon: Annotated[float, Meta(gt=0, le=1000, description="Budget of each worker.")]
    delta: Annotated[float, Meta(gt=0, lt=1, description="Far below one over the number of workers.")]
    clip_norm: Annotated[float, Meta(gt=0, le=1e30, description="Each update is clipped to this L2 norm.")]
    max_participations: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Versions that one worker may have a part in.")
    ]
    noise_multiplier: Annotated[
        float | None, Meta(gt=0, le=1e6, description="Left out: calibrated from the keys above.")
    ] = None
    adaptive_clip: Annotated[
        AdaptiveClip | None,
        Meta(extra={"form": AdaptiveClip.form}, description="Left out: clip_norm is that of every version."),
    ] = None
    correlated: Annotated[
        Correlated | None,
        Meta(extra={"form": Correlated.form}, description="Noise that later versions take back."),
    ] = None


class Storage(Table, frozen=True):
    """What is kept on disk, and how surely."""

    durability: Annotated[
        Literal["fsync", "os"],
        Meta(description='What "accepted" survives: a power cut, or only the broker\'s death.'),
    ] = "fsync"
    keep: Annotated[int, Meta(ge=1, description="Latest versions that stay, besides the best ones.")] = 3
    keep_payloads: Annotated[
        bool, Meta(description="Keep every update, so that versions can be computed again.")
    ] = False
    disk_budget: Annotated[
        int,
        Meta(
            ge=0,
            extra=_SIZE,
            description="Bytes of updates that wait on disk; more wait at the workers. 0: no limit.",
        ),
    ] = 0


class Network(Table, frozen=True):
    """Timing and sizes on the wire."""

    beat_s: Annotated[
        float, Meta(gt=0, le=3600, description="After this silence a peer says that it lives.")
    ] = 10.0
    lease_s: Annotated[
        float,
        Meta(gt=0, le=86400, description="After this silence a worker is suspect, after two gone."),
    ] = 35.0
    block: Annotated[
        int,
        Meta(ge=1024, le=16 * MIB, extra=_SIZE, description="Piece of a transfer; 256 KiB suits slow links."),
    ] = MIB
    credit_budget: Annotated[
        int, Meta(ge=1024, extra=_SIZE, description="Uploads in flight, all workers together.")
    ] = 32 * MIB
    memory_limit: Annotated[
        int,
        Meta(
            ge=0,
            extra=_SIZE,
            description="Beyond it, and 96 KiB a connection, all are closed and opened anew, not to die. 0: no limit.",
        ),
    ] = 1024 * MIB
    http: Annotated[
        str,
        Meta(
            pattern=rf"^({_HOST_PORT})?$",
            extra={"form": '"host:port" (a port up to 65535, or *)'},
            description="Where /metrics, /healthz and /readyz are served, such as 127.0.0.1:9560.",
        ),
    ] = ""
    http_public: Annotated[
        bool, Meta(description="Allow http beyond loopback: anybody there can read how the federation does.")
    ] = False

    @property
    def http_loopback(self) -> bool:
        """Whether `http` is off, or can be reached from this machine only."""
        return not self.http or _is_loopback(self.http)


class Security(Table, frozen=True):
    """Who may connect. With keys everything is encrypted, and only workers on the allowlist get in."""

    keys: Annotated[
        str,
        Meta(
            extra=_PATH,
            description='Folder with the broker\'s keys; "fedmq keys new broker" makes keys/broker.key, which '
            'workers need (--server-key), and keys/broker.secret. "fedmq keys allow" and "fedmq keys invite" let '
            "workers in.",
        ),
    ] = ""
    allowlist: Annotated[
        str,
        Meta(
            extra=_PATH,
            description="File with the keys of the workers that may connect; read again when it changes. "
            'Empty: "allowlist" in the folder of keys.',
        ),
    ] = ""
    insecure: Annotated[
        bool, Meta(description="Allow a bind beyond loopback: anybody can join and read.")
    ] = False


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is the better one: losses and errors, by their name.

    Examples
    --------
    >>> lower_is_better("val_loss"), lower_is_better("accuracy")
    (True, False)
    """
    return metric.lower().endswith(_LOSS_WORDS)


def _is_loopback(address: str) -> bool:
    """Whether ``host:port`` can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # an interface or a name: assume that others reach it
        return False
