"""A whole federation in one process on virtual time: real minds, real journal, hostile everything else.

`run(scenario)` either returns what was made, or raises `AssertionError` with the seed and the last things that
happened. The same scenario always runs the same way.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from fedmq.broker.events import Control
from fedmq.fedcore.wire import Offer
from fedmq.worker.events import Pause, Resume, Stop

from .audit import Audit
from .broker import Broker
from .network import Network, Parcel
from .scenario import Scenario
from .schedule import Schedule
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
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.schedule = Schedule()
        self.rng = random.Random(scenario.seed)
        self.audit = Audit(scenario.config)
        self.trace: deque[str] = deque(maxlen=TRACE)
        self.killed = 0
        self.broker = Broker(
            self.schedule,
            self.rng,
            config=scenario.config,
            elements=scenario.elements,
            model_bytes=scenario.model_bytes,
            fsync_s=scenario.fsync_s,
            audit=self.audit,
        )
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
                schedule=self.schedule,
                rng=self.rng,
                network=self.network,
                audit=self.audit,
                elements=scenario.elements,
                kinds=kinds if i == 0 or self.rng.random() < 0.7 else kinds[:1],
                failing=scenario.failing,
            )
            for i in range(scenario.workers)
        ]
        self._tokens = itertools.count()
        self._faulty = scenario.faults_s > 0

    def run(self) -> None:
        """Until the federation is finished."""
        self.broker.start()
        for worker in self.workers:
            self.schedule.after(self.rng.uniform(0.0, 5.0), self._starter(worker))
        if self._faulty:
            self._next_fault()
            self.schedule.at(self.scenario.faults_s, self._put_right)
        self._watch_over()
        for _ in range(STEPS_MAX):
            if self.broker.has_finished:
                self.audit.ended(self.broker.disk.rows)
                return
            late = self.schedule.now - self.scenario.faults_s
            assert late < PATIENCE_S, f"not finished {late:.0f} s after the last fault: {self._status()}"
            self.schedule.step()
        raise AssertionError(f"not finished after {STEPS_MAX} steps: {self._status()}")

    def _to_broker(self, peer: bytes, parcel: Parcel) -> None:
        if isinstance(parcel[0], Offer):
            self.trace.append(f"{self.schedule.now:9.3f} {peer!r} offers {parcel[0].task[-4:].hex()}")
        self.broker.deliver(peer, parcel)

    def _status(self) -> dict[str, Any]:
        if not self.broker.is_alive:
            return {"broker": "dead"}
        workers = [w.mind.status() | {"alive": w.is_alive, "exit": w.exit} for w in self.workers if w.life]
        return self.broker.mind.status(self.schedule.now) | {"minds": workers}

    def _happened(self, what: str) -> None:
        self.trace.append(f"{self.schedule.now:9.3f} -- {what}")

    def _watch_over(self) -> None:
        """The operating system: what has ended is started again, but for what ended for good."""
        if not self.broker.is_alive and self.broker.exit is not None and not self.broker.has_finished:
            self._happened("the broker stopped")
            self.broker.exit = None
            self.schedule.after(self.rng.uniform(6.0, 20.0), self._starter(self.broker))
        for worker in self.workers:
            if not worker.is_alive and worker.exit is not None and not self.broker.has_finished:
                assert worker.exit.code == 0 or self.scenario.may_evict, (
                    f"{worker.name} gave up: {worker.exit.reason}"
                )
                worker.exit = None
                self.schedule.after(self.rng.uniform(0.1, 20.0), self._starter(worker))
        self.schedule.after(1.0, self._watch_over)

    def _starter(self, process: Broker | Worker) -> Callable[[], None]:
        def start() -> None:
            if not process.is_alive and not self.broker.has_finished:
                self._happened(f"{process.name} starts")
                process.start()

        return start

    def _next_fault(self) -> None:
        def strike() -> None:
            if self._faulty:
                fault = self.rng.choice(self._faults())
                fault()
                self._next_fault()

        self.schedule.after(self.rng.expovariate(1.0 / self.scenario.fault_every_s), strike)

    def _faults(self) -> list[Callable[[], None]]:
        faults = [
            lambda: self._kill(self.broker),
            lambda: self._kill(self.rng.choice(self.workers)),
            lambda: self._kill(self.rng.choice(self.workers)),
            self._break_connection,
            self._break_connection,
            self._break_connection,
            self._break_connection,
            self._stall_connection,
            self._stop_worker,
            self._pause_worker,
            self._drain_broker,
            lambda: self._command("pause"),
            lambda: self._command("resume"),
        ]
        if self.scenario.may_evict:
            faults.append(lambda: self._command("evict", self.rng.choice(self.workers).name))
            faults.append(lambda: self._command("admit", self.rng.choice(self.workers).name))
        return faults

    def _kill(self, process: Broker | Worker) -> None:
        """Between any two actions from here on."""
        if not process.is_alive:
            return
        power_cut = self.rng.random() < 0.4

        def on_death() -> None:
            self.killed += 1
            self._happened(f"{process.name} was killed{' by a power cut' if power_cut else ''}")
            process.killed(power_cut=power_cut)
            self.schedule.after(self.rng.choice((0.1, 0.1, 3.0, 30.0, 90.0)), self._starter(process))

        process.kill_after(self.rng.randint(0, 25), on_death)

    def _break_connection(self) -> None:
        worker = self.rng.choice(self.workers)
        if worker.socket is not None and worker.socket.connection is not None:
            self._happened(f"the connection of {worker.name} breaks, now or soon")
            connection, told = worker.socket.connection, self.rng.random() < 0.7
            if self.rng.random() < 0.5:
                connection.break_(told_worker=told, told_broker=self.rng.random() < 0.7)
            else:
                connection.break_after(self.rng.randint(0, 12), told_worker=told, told_broker=True)

    def _stall_connection(self) -> None:
        worker = self.rng.choice(self.workers)
        if worker.socket is not None and worker.socket.connection is not None:
            self._happened(f"the connection of {worker.name} stands still")
            worker.socket.connection.stall(self.schedule.now + self.rng.choice((5.0, 40.0, 100.0)))

    def _stop_worker(self) -> None:
        worker = self.rng.choice(self.workers)
        self._happened(f"{worker.name} stops")
        worker.tell(Stop())

    def _pause_worker(self) -> None:
        worker = self.rng.choice(self.workers)
        self._happened(f"{worker.name} pauses")
        worker.tell(Pause())
        self.schedule.after(self.rng.uniform(1.0, 60.0), lambda: worker.tell(Resume()))

    def _drain_broker(self) -> None:
        self._happened("the broker drains")
        self.broker.drain()

    def _command(self, command: str, worker: str | None = None) -> None:
        self._operate(command, worker)

    def _operate(self, command: str, worker: str | None = None) -> int:
        token = next(self._tokens)
        if self.broker.is_alive:
            self._happened(f"{command} {worker or ''}")
            args = {} if worker is None else {"worker": worker}
            self.broker.run(self.broker.tell, Control(token, command, args))
        return token

    def _put_right(self) -> None:
        """Nothing goes wrong from here on; what is wrong is taken back."""
        self._happened("the faults stop")
        self._faulty = False
        for process in (self.broker, *self.workers):
            process.spare()
        self.network.spare()
        for worker in self.workers:
            worker.failing = 0.0
            worker.tell(Resume())
        self._set_going()

    def _set_going(self) -> None:
        """Take back what an operator did; again, until a broker says that it was done."""
        tokens = [self._operate("resume"), *(self._operate("admit", w.name) for w in self.workers)]

        def check() -> None:
            if not all(self.broker.replies.get(token, {}).get("ok") for token in tokens):
                self._set_going()

        self.schedule.after(5.0, check)


def run(scenario: Scenario) -> Federation:
    """Run a scenario to its end.

    Raises
    ------
    AssertionError
        Something happened that must never happen: says what, with which seed, and what came before.
    """
    federation = Federation(scenario)
    try:
        federation.run()
    except BaseException as error:
        before = "\n".join(federation.trace)
        raise AssertionError(
            f"seed {scenario.seed} at {federation.schedule.now:.3f} s: {error!r}\n"
            f"replay: FEDMQ_SEEDS={scenario.seed}-{scenario.seed} pytest tests/simulation\n{before}"
        ) from error
    return federation
