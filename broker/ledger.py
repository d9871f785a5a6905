"""What a federation's privacy has cost so far, read from its state folder: what an auditor starts from. Reads only.

It names the workers of a worker-level federation, and in how many versions each had a part. Participation is public
there; still the state folder is the broker's own, and what is read of it goes to whom the operator shows it.
"""

from pathlib import Path

import msgspec

from fedmq.fedcore import config as configs
from fedmq.fedcore.config import Privacy, SampledPrivacy, WorkerPrivacy
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.correlated import Bisr
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import WorkerLevel
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers

from .mechanism import mechanism
from .store.history import History
from .store.state import read_identity


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of a mechanism, and what was spent under it.

    Attributes
    ----------
    unit
        "record" or "worker".
    epsilon, delta
        The budget: of the run, or of each worker.
    noise_multiplier
        z that the federation was started with.
    clip_norm
        S: of a record's gradient, or of an update; where it is adapted, of the updates that are folded next.
    adaptive
        How S moves; None where it is constant.
    denominator
        D, or K.
    sampling_rate
        q; 1 of workers that come by themselves, which no coin decides.
    max_participations
        The cap of a worker; where records or workers are sampled, the steps that are planned.
    releases
        Versions that spent privacy.
    noise_multipliers
        z of each version that workers were charged for.
    participations
        By a worker's principal (its CURVE key, without keys its name); empty where the unit is a record, and where
        workers are sampled: each round costs all of them the same, and who was asked is secret.
    spent
        Likewise, Σ 1 / z² over its participations: they cost what one release with z = 1 / √spent costs. With
        correlated noise 1 / z² of the whole run, once.
    parts
        Likewise, the versions that it was in.
    noise
        The correlated noise; None where each version's is its own.
    """

    unit: str
    epsilon: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    denominator: float
    sampling_rate: float
    max_participations: int
    releases: int
    noise_multipliers: dict[int, float] = {}
    participations: dict[str, int] = {}
    spent: dict[str, float] = {}
    adaptive: AdaptiveClipping | None = None
    parts: dict[str, list[int]] = {}
    noise: Bisr | None = None


def read(state: str | Path) -> Ledger | None:
    """The ledger of a state folder, beside its broker or after it; None of a federation without privacy.

    Raises
    ------
    StateError
        When the folder is no state folder of a broker, or cannot be read by this version.
    """
    state = Path(state)
    identity = read_identity(state)
    config = configs.parse((state / "config.toml").read_text(encoding="utf-8"), base_dir=identity.base_dir)
    privacy = config.privacy
    if privacy is None:
        return None
    constants = mechanism(config, identity.noise_multiplier, identity.bandwidth)
    adaptive = constants.adaptive if isinstance(constants, WorkerLevel | SampledWorkers) else None
    with History.open(state / "journal.db") as journal:
        return Ledger(
            unit=privacy.unit,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            noise_multiplier=constants.noise_multiplier,
            clip_norm=_clip_norm(privacy, journal),
            adaptive=adaptive,
            denominator=constants.denominator,
            sampling_rate=constants.spend.sampling_rate,
            max_participations=privacy.max_participations
            if isinstance(privacy, WorkerPrivacy)
            else privacy.steps,
            releases=journal.privacy_steps(),
            noise_multipliers=journal.charged(),
            participations=journal.participations(),
            spent=journal.spent(),
            parts=journal.parts() if isinstance(privacy, WorkerPrivacy) else {},
            noise=constants.noise if isinstance(constants, CorrelatedWorkerLevel) else None,
        )


def _clip_norm(privacy: Privacy | WorkerPrivacy | SampledPrivacy, journal: History) -> float:
    if isinstance(privacy, Privacy):
        return privacy.max_grad_norm
    left = journal.clip_norms()
    return left[max(left)] if left else privacy.clip_norm
