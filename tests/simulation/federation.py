"""A whole federation in one process on virtual time: real minds, journal and stores, hostile everything else.

`run(scenario)` either returns what was made, or raises `AssertionError` with the seed and the last things that
happened. The same scenario always runs the same way.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from fedmq.cli.simulate.schedule import Schedule
from fedmq.fedcore.wire import Offer

from .audit import Audit
from .broker import Broker, initial_model
from .disks import Disks
from .faults import Faults
from .network import Network, Parcel
from .scenario import Scenario
from .worker import Worker

PATIENCE_S = 4_000.0
"""How long a federation may take to finish when nothing goes wrong any more."""
STEPS_MAX = 400_000
TRACE = 60
"""Lines of what came before, where a seed fails."""


class Federation:
    """One broker, its workers, and their bad luck.

    Parameters
    ----------
    scenario : Scenario
    disks : Disks
    """

    def __init__(self, scenario: Scenario, disks: Disks) -> None:
        self.scenario = scenario
        self.schedule = Schedule()
        self.rng = random.Random(scenario.seed)
        from_worker = scenario.config.model.source == "first-worker"
        self.audit = Audit(scenario, None if from_worker else initial_model(scenario, 0))
        self.trace: deque[str] = deque(maxlen=TRACE)
        self.broker = Broker(scenario, self.schedule, self.rng, self.audit, disks)
        self.network = Network(
            self.schedule,
            self.rng,
            is_broker_up=lambda: self.broker.is_alive and self.broker.exit is None,
            to_broker=self._to_broker,
        )
        self.broker.network = self.network
        kinds = ("fit", "evaluate", "init")
        self.workers = [
            Worker(
                f"w{i}",
                scenario,
                schedule=self.schedule,
                rng=self.rng,
                network=self.network,
                audit=self.audit,
                disks=disks,
                kinds=kinds if i == 0 or self.rng.random() < 0.7 else kinds[:1],
            )
            for i in range(scenario.workers)
        ]
        self.faults = Faults(self)

    def run(self) -> None:
        """Until the federation is finished."""
        self.broker.start()
        for worker in self.workers:
            self.schedule.after(self.rng.uniform(0.0, 5.0), self.starter(worker))
        self.faults.begin()
        self._watch_over()
        for _ in range(STEPS_MAX):
            if self.broker.has_finished:
                self.audit.ended(self.broker.rows)
                return
            late = self.schedule.now - self.scenario.faults_s
            assert late < PATIENCE_S, f"not finished {late:.0f} s after the last fault: {self._status()}"
            self.schedule.step()
        raise AssertionError(f"not finished after {STEPS_MAX} steps: {self._status()}")

    def happened(self, what: str) -> None:
        """Something for the trace of a seed that fails."""
        self.trace.append(f"{self.schedule.now:9.3f} -- {what}")

    def starter(self, process: Broker | Worker) -> Callable[[], None]:
        """What starts a process, if it is needed then."""

        def start() -> None:
            if not process.is_alive and not self.broker.has_finished:
                self.happened(f"{process.name} starts")
                process.start()

        return start

    def _to_broker(self, peer: bytes, parcel: Parcel) -> None:
        if isinstance(parcel[0], Offer):
            self.trace.append(f"{self.schedule.now:9.3f} {peer!r} offers {parcel[0].task[-4:].hex()}")
        self.broker.deliver(peer, parcel)

    def _status(self) -> dict[str, Any]:
        if not self.broker.is_alive:
            return {"broker": "dead"}
        workers = [w.mind.status() | {"alive": w.is_alive, "exit": w.exit} for w in self.workers if w.life]
        return self.broker.mind.status(self.schedule.now) | {"minds": workers}

    def _watch_over(self) -> None:
        """The operating system: what has ended is started again, but for what ended for good."""
        if not self.broker.is_alive and self.broker.exit is not None and not self.broker.has_finished:
            self.happened("the broker stopped")
            self.broker.exit = None
            self.schedule.after(self.rng.uniform(6.0, 20.0), self.starter(self.broker))
        for worker in self.workers:
            if not worker.is_alive and worker.exit is not None and not self.broker.has_finished:
                assert worker.exit.code == 0 or self.scenario.may_evict, (
                    f"{worker.name} gave up: {worker.exit.reason}"
                )
                worker.exit = None
                self.schedule.after(self.rng.uniform(0.1, 20.0), self.starter(worker))
        self.schedule.after(1.0, self._watch_over)


def run(scenario: Scenario) -> Federation:
    """Run a scenario to its end.

    Raises
    ------
    AssertionError
        Something happened that must never happen: says what, with which seed, and what came before.
    """
    disks = Disks()
    federation = Federation(scenario, disks)
    try:
        with disks.watched():
            federation.run()
    except Exception as error:
        before = "\n".join(federation.trace)
        raise AssertionError(
            f"seed {scenario.seed} at {federation.schedule.now:.3f} s: {error!r}\n"
            f"replay: python -m tests.simulation.soak --kind {scenario.kind} --seeds {scenario.seed}\n{before}"
        ) from error
    finally:
        for process in (federation.broker, *federation.workers):
            process.close()
        disks.close()
    return federation
