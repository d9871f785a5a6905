"""What goes wrong while faults last: kills, power cuts, the network, operators. All of it from the seed."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedmq.broker.events import Control
from fedmq.worker.events import Pause, Resume, Stop

from .network import Connection, Way
from .worker import Worker

if TYPE_CHECKING:
    from .broker import Broker
    from .federation import Federation

Fault = Callable[[], None]


class Faults:
    """Strikes a federation at random times.

    Parameters
    ----------
    federation : Federation
    """

    def __init__(self, federation: "Federation") -> None:
        self.counts: Counter[str] = Counter()
        self._federation = federation
        self._rng = federation.rng
        self._schedule = federation.schedule
        self._is_on = federation.scenario.faults_s > 0
        self._tokens = itertools.count()
        weighted: list[tuple[int, Fault]] = [
            (3, lambda: self._kill(federation.broker)),
            (2, self._kill_in_fold),
            (4, lambda: self._kill(self._worker())),
            (4, self._break_connection),
            (2, self._stand_still),
            (2, self._half_a_message),
            (2, self._one_way),
            (2, self._partition),
            (1, self._slow_link),
            (2, self._repeat),
            (1, self._stop_worker),
            (1, self._pause_worker),
            (1, self._drain_broker),
            (1, lambda: self._operate("pause")),
            (1, lambda: self._operate("resume")),
        ]
        if federation.scenario.may_evict:
            weighted.append((1, lambda: self._operate("evict", self._worker())))
            weighted.append((1, lambda: self._operate("admit", self._worker())))
        self._all = [fault for weight, fault in weighted for _ in range(weight)]

    def begin(self) -> None:
        """From now on, until everything is put right."""
        if self._is_on:
            self._next()
            self._schedule.at(self._federation.scenario.faults_s, self._put_right)

    def _next(self) -> None:
        def strike() -> None:
            if self._is_on:
                self._rng.choice(self._all)()
                self._next()

        self._schedule.after(self._rng.expovariate(1.0 / self._federation.scenario.fault_every_s), strike)

    def _happens(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self._federation.happened(what)

    def _worker(self) -> Worker:
        return self._rng.choice(self._federation.workers)

    def _connection(self) -> tuple[Worker, Connection] | None:
        worker = self._worker()
        connection = None if worker.socket is None else worker.socket.connection
        return None if connection is None else (worker, connection)

    def _kill(self, process: "Broker | Worker") -> None:
        """Between any two actions from here on, or in the middle of one that the disk does."""
        if not process.is_alive:
            return
        if self._rng.random() < 0.3:
            process.kill_at_disk(self._rng.randint(0, 12), self._death(process))
        else:
            process.kill_after(self._rng.randint(0, 25), self._death(process))

    def _kill_in_fold(self) -> None:
        """While a version is made, or before it is durable: the same buffer is folded again."""
        broker = self._federation.broker
        if broker.is_alive:
            broker.kill_in_fold(self._rng.randint(0, 12), self._death(broker))

    def _death(self, process: "Broker | Worker") -> Callable[[], None]:
        may_cut = process is not self._federation.broker or self._federation.scenario.may_lose_power
        power_cut = may_cut and self._rng.random() < 0.4

        def on_death() -> None:
            kind = "power cut" if power_cut else "kill"
            self._happens(f"{kind}: {process.kind}", f"{process.name} ends by a {kind}")
            process.killed(power_cut=power_cut)
            delay_s = self._rng.choice((0.1, 0.1, 3.0, 30.0, 90.0))
            self._schedule.after(delay_s, self._federation.starter(process))

        return on_death

    def _break_connection(self) -> None:
        if found := self._connection():
            worker, connection = found
            told_worker, told_broker = self._rng.random() < 0.7, self._rng.random() < 0.7

            def break_() -> None:
                self._happens("connection broken", f"the connection of {worker.name} breaks")
                connection.break_(told_worker=told_worker, told_broker=told_broker)

            if self._rng.random() < 0.5:
                break_()
            else:
                connection.after_messages(self._rng.randint(0, 12), break_)

    def _stand_still(self) -> None:
        if found := self._connection():
            self._happens("stall", f"the connection of {found[0].name} stands still")
            self._still(found[1], ("up", "down"))

    def _half_a_message(self) -> None:
        """A peer that stalls in the middle of a message: nothing of it arrives, nor of what is behind it."""
        if found := self._connection():
            worker, connection = found

            def stall() -> None:
                self._happens("half a message", f"half a message arrives from or at {worker.name}")
                self._still(connection, ("up", "down"))

            connection.after_messages(self._rng.randint(0, 4), stall)

    def _one_way(self) -> None:
        if found := self._connection():
            way: Way = self._rng.choice(("up", "down"))
            self._happens("one-way loss", f"nothing gets {way} from or to {found[0].name}")
            self._still(found[1], (way,))

    def _still(self, connection: Connection, ways: tuple[Way, ...]) -> None:
        """Until it goes on, or until TCP gives up."""
        until = self._schedule.now + self._rng.choice((5.0, 40.0, 100.0))
        connection.stall(until, ways)
        if self._rng.random() < 0.4:
            told = self._rng.random() < 0.7
            self._schedule.at(until, lambda: connection.break_(told_worker=told, told_broker=told))

    def _partition(self) -> None:
        """Some workers and the broker do not reach each other for a while."""
        workers = self._federation.workers
        apart = self._rng.sample(workers, self._rng.randint(1, len(workers)))
        until = self._schedule.now + self._rng.choice((5.0, 40.0, 100.0))
        breaks = self._rng.random() < 0.5
        self._happens("partition", f"{', '.join(w.name for w in apart)}: cut off")
        for worker in apart:
            self._federation.network.cut_off(worker.name, until)
            connection = None if worker.socket is None else worker.socket.connection
            if connection is not None and breaks:
                connection.break_(told_worker=self._rng.random() < 0.5, told_broker=False)
            elif connection is not None:
                connection.stall(until)

    def _slow_link(self) -> None:
        if found := self._connection():
            bytes_per_s = self._rng.choice((500.0, 2_000.0, 20_000.0))
            self._happens("slow link", f"{found[0].name} has {bytes_per_s:.0f} bytes/s")
            found[1].slow(bytes_per_s)

    def _repeat(self) -> None:
        if found := self._connection():
            way: Way = self._rng.choice(("up", "down"))
            message = self._federation.network.repeat(found[1], found[0].name, way)
            if message is not None:
                self._federation.audit.repeated(message)
                what = f"{type(message).__name__} {way} of {found[0].name}"
                self._happens("repeated message", f"{what} comes again")

    def _stop_worker(self) -> None:
        worker = self._worker()
        self._happens("worker stopped", f"{worker.name} stops")
        worker.tell(Stop())

    def _pause_worker(self) -> None:
        worker = self._worker()
        self._happens("worker paused", f"{worker.name} pauses")
        worker.tell(Pause())
        self._schedule.after(self._rng.uniform(1.0, 60.0), lambda: worker.tell(Resume()))

    def _drain_broker(self) -> None:
        self._happens("broker stopped", "the broker drains")
        self._federation.broker.drain()

    def _operate(self, command: str, worker: Worker | None = None) -> None:
        self._command(command, None if worker is None else worker.name)

    def _command(self, command: str, worker: str | None = None) -> int:
        token = next(self._tokens)
        broker = self._federation.broker
        if broker.is_alive:
            self._happens(f"operator: {command}", f"{command} {worker or ''}")
            args = {} if worker is None else {"worker": worker}
            broker.run(broker.tell, Control(token, command, args))
        return token

    def _put_right(self) -> None:
        """Nothing goes wrong from here on; what is wrong is taken back."""
        self._federation.happened("the faults stop")
        self._is_on = False
        self._federation.broker.spare()
        self._federation.network.spare()
        for worker in self._federation.workers:
            worker.spare()
            worker.failing = worker.poisoned = 0.0
            worker.tell(Resume())
        self._set_going()

    def _set_going(self) -> None:
        """Take back what an operator did; again, until a broker says that it was done."""
        workers = self._federation.workers
        tokens = [self._command("resume"), *(self._command("admit", w.name) for w in workers)]

        def check() -> None:
            replies = self._federation.broker.replies
            if not all(replies.get(token, {}).get("ok") for token in tokens):
                self._set_going()

        self._schedule.after(5.0, check)
