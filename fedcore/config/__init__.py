"""federation.toml as values: read it, check it, write it, compare two of them.

`load` reads a file, `parse` a text or a mapping; both return a `Config` in which every key of the file is
an attribute under the same name (``config.mode.buffer``), every default is filled in, every range and
every combination has been checked, and every path is absolute. What is wrong raises `ConfigError`: one
line that names the key, what it holds, and what it may hold.

`tables` says what exists, `reading` and `writing` move it to and from TOML, `restart` says what a
restart may alter.
"""

from .clip_tables import AdaptiveClip, check_count_noise
from .correlated_table import Correlated
from .model_table import Model
from .reading import load, parse
from .restart import Change, changes, fingerprint
from .rule_tables import (
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NormBound,
    Rule,
    TrimmedMean,
    UserRule,
)
from .sampled_privacy import SampledPrivacy
from .tables import (
    Adagrad,
    Adam,
    Aggregate,
    AsyncMode,
    Evaluate,
    Fadas,
    FedAsync,
    Federation,
    Mode,
    Momentum,
    Network,
    Optimizer,
    Privacy,
    Security,
    Sgd,
    Stop,
    Storage,
    SyncMode,
    WorkerPrivacy,
    Yogi,
    lower_is_better,
)
from .whole import Config, check_minimum
from .writing import template, to_toml

__all__ = [
    "Adagrad",
    "Adam",
    "AdaptiveClip",
    "Aggregate",
    "AsyncMode",
    "Bulyan",
    "CenteredClipping",
    "Change",
    "Config",
    "Correlated",
    "Evaluate",
    "Fadas",
    "FedAsync",
    "Federation",
    "GeometricMedian",
    "Krum",
    "Mean",
    "Median",
    "Mode",
    "Model",
    "Momentum",
    "MultiKrum",
    "Network",
    "NormBound",
    "Optimizer",
    "Privacy",
    "Rule",
    "SampledPrivacy",
    "Security",
    "Sgd",
    "Stop",
    "Storage",
    "SyncMode",
    "TrimmedMean",
    "UserRule",
    "WorkerPrivacy",
    "Yogi",
    "changes",
    "check_count_noise",
    "check_minimum",
    "fingerprint",
    "load",
    "lower_is_better",
    "parse",
    "template",
    "to_toml",
]
