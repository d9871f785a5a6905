"""A whole federation on virtual time: one broker's mind, as many workers' minds as memory holds.

Minds are the real ones; what is between them, and what they would do to a disk, takes virtual time and nothing
else. The same options and seed give the same figures, but for those of this computer.
"""

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from fedmq.broker.events import Received
from fedmq.fedcore import codecs, wire
from fedmq.fedcore.config import Config
from fedmq.fedcore.errors import FedmqError

from . import training
from .broker import Broker
from .crowd import Crowd, Draws
from .device import Device
from .figures import Figures, Report, duration, percentile
from .schedule import Schedule

RAMP_S: Final = 1.0
"""Devices start within this time, or a thousand in a second."""
STUCK_S: Final = 7 * 86_400.0
"""Without a version for so long it will not go on."""
LOOK_STEPS: Final = 20_000
"""So often somebody is told how far it is."""

Show = Callable[[int, int, float], None]
"""Takes the newest version, the updates so far, and the virtual time."""


class Simulation:
    """One federation and its devices.

    Parameters
    ----------
    config : Config
    crowd : Crowd
    work : training.Work, optional
        What is trained; without it, what `crowd.train` names.
    """

    def __init__(self, config: Config, crowd: Crowd, work: training.Work | None = None) -> None:
        self.config = config
        self.crowd = crowd
        self.schedule = Schedule()
        self.draws = Draws(crowd)
        self.figures = Figures()
        self.training: training.Training = (
            training.make(crowd.train, config, crowd.workers, crowd.seed)
            if work is None
            else training.Real(config, work)
        )
        self.encodings = codecs.ENCODINGS
        self.died = 0
        self.broker = Broker(self)
        self._peers: dict[bytes, Device] = {}
        self._connections = 0
        self._started = time.perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether the broker has left."""
        return self.broker.exit is not None

    def run(self, show: Show) -> Report:
        """Until the federation is finished.

        Raises
        ------
        FedmqError
            When no version was made for too long.
        """
        try:
            self._populate()
            self.broker.start()
            self._go_on(show)
            return self._report()
        finally:
            self.training.close()

    def connect(self, device: Device) -> None:
        """A device has a connection, with an address that was never used before."""
        self._connections += 1
        device.peer = self._connections.to_bytes(5, "big")
        self._peers[device.peer] = device

    def disconnect(self, device: Device) -> None:
        """A device has none any more; nobody is told."""
        if device.peer is not None:
            del self._peers[device.peer]
            device.peer = None

    def to_broker(self, at: float, peer: bytes, message: wire.Message, payload: memoryview | None) -> None:
        """A message arrives at the broker at this time."""
        self.schedule.at(at, partial(self._receive, peer, message, payload))

    def to_device(self, peer: bytes, message: wire.Message, payload: memoryview | None) -> None:
        """The broker sends a message; to nobody, where there is no connection any more."""
        self.figures.sent[type(message).__name__] += 1
        if isinstance(message, wire.Ack):
            self.figures.answers[message.result] += 1
        device = self._peers.get(peer)
        if device is not None:
            at = device.arrives_at(self.draws.latency())
            self.schedule.at(at, partial(device.receive, peer, message, payload))

    def _receive(self, peer: bytes, message: wire.Message, payload: memoryview | None) -> None:
        if not self.is_over:
            self.figures.received[type(message).__name__] += 1
            self.broker.tell(Received(peer, message, payload))

    def _populate(self) -> None:
        ramp_s = max(RAMP_S, self.crowd.workers / 1000)
        rng, availability = self.draws.rng, self.crowd.availability
        for index in range(self.crowd.workers):
            device = Device(self, index)
            self.schedule.at(rng.uniform(0.0, ramp_s), device.start)
            if availability.share < 1:
                # As if it had been going on for long: this share of them is on.
                if rng.random() < availability.share:
                    self.schedule.at(
                        ramp_s + rng.expovariate(1 / availability.spell_s), partial(self._off, device)
                    )
                else:
                    self.schedule.at(ramp_s, partial(self._off, device))

    def _off(self, device: Device) -> None:
        device.switch_off()
        spell_s = self.draws.rng.expovariate(1 / self.crowd.availability.off_s)
        self.schedule.after(spell_s, partial(self._on, device))

    def _on(self, device: Device) -> None:
        device.switch_on()
        spell_s = self.draws.rng.expovariate(1 / self.crowd.availability.spell_s)
        self.schedule.after(spell_s, partial(self._off, device))

    def _go_on(self, show: Show) -> None:
        # A hundred thousand minds are no garbage, and looking at them again and again is half of the work.
        gc.collect()
        gc.freeze()
        before = gc.get_threshold()
        gc.set_threshold(100_000, 50, 100)
        try:
            while not self.is_over:
                for _ in range(LOOK_STEPS):
                    self.schedule.step()
                    if self.broker.exit is not None:
                        break
                show(len(self.figures.versions), sum(self.figures.staleness.values()), self.schedule.now)
                self._check_progress()
        finally:
            gc.set_threshold(*before)
            gc.unfreeze()

    def _check_progress(self) -> None:
        last = self.figures.versions[-1] if self.figures.versions else 0.0
        if self.schedule.now - last > STUCK_S:
            status = self.broker.mind.status(self.schedule.now)
            raise FedmqError(
                f"after version {len(self.figures.versions)} none was made for {duration(STUCK_S)} of virtual time: "
                f"{status['state']} {status['reason']}; fewer updates a version (mode.buffer, clients_per_round), a "
                "longer deadline or more workers would help"
            )

    def _report(self) -> Report:
        figures, crowd = self.figures, self.crowd
        made, updates = len(figures.versions), sum(figures.staleness.values())
        last = figures.versions[-1] if made else self.schedule.now
        wall_s = time.perf_counter() - self._started
        received, sent = sum(figures.received.values()), sum(figures.sent.values())
        answers = max(sum(figures.answers.values()), 1)
        tau_sum = sum(tau * count for tau, count in figures.staleness.items())
        return Report(
            workers=crowd.workers,
            versions=made,
            mode=self.config.mode.kind,
            train=crowd.train,
            seed=crowd.seed,
            virtual_s=last,
            half_s=figures.versions[(made - 1) // 2] if made else 0.0,
            version_ms=1e3 * last / max(made, 1),
            updates=updates,
            updates_per_s=updates / max(last, 1e-9),
            staleness_mean=tau_sum / max(updates, 1),
            staleness_p50=percentile(figures.staleness, 0.5),
            staleness_p99=percentile(figures.staleness, 0.99),
            stale_share=figures.answers["stale"] / answers,
            rejected_share=figures.answers["rejected"] / answers,
            died=self.died,
            busy_mean=figures.busy_mean,
            beat_s=self.config.network.beat_s,
            received_per_s=received / max(last, 1e-9),
            sent_per_s=sent / max(last, 1e-9),
            beats_share=figures.received["Beat"] / max(received, 1),
            accuracy=self.training.accuracy(made),
            wall_s=wall_s,
            mind_us=1e6 * self.broker.mind_s / max(received, 1),
            messages=received + sent,
        )
