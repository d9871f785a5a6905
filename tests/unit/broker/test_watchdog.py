"""The watchdog on memory: when it suspects, when it rebinds, and when it says that it was of no use."""

import itertools

from fedmq.broker.watchdog import GROWTH, LOOK_S, SETTLE_S, Step, Watchdog, anonymous_bytes, trim

MIB = 1 << 20
LIMIT = 1000 * MIB


class Process:
    """A process whose memory a test sets, watched for as long as a test says."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.bytes = 25 * MIB
        self.trims = 0
        self.connections = 0
        self.now = 100.0
        self.watchdog = Watchdog(limit, lambda: self.bytes, self._trim)

    def _trim(self) -> None:
        self.trims += 1

    def watch(self, seconds: float, per_s: int = 0) -> list[tuple[float, Step]]:
        """The steps that were asked for, but for NOTHING, while memory grows; a rebind's `bytes` are the test's."""
        steps: list[tuple[float, Step]] = []
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_S
            self.bytes += int(per_s * LOOK_S)
            step = self.watchdog.look(self.now, self.connections)
            if step is not Step.NOTHING:
                steps.append((self.now, step))
        return steps

    def kinds(self, seconds: float, per_s: int = 0) -> list[Step]:
        """The steps alone."""
        return [step for _, step in self.watch(seconds, per_s)]


def test_a_quiet_process_is_left_alone() -> None:
    """Little memory, and slow growth below half of the limit, call for nothing."""
    process = Process()
    assert process.kinds(10) == []
    assert process.kinds(40, per_s=8 * MIB) == []
    assert process.trims == 0


def test_a_crowd_that_is_welcome_is_no_reason_to_throw_it_out() -> None:
    """What its connections take in the long run is not held against the limit; what is beyond that is."""
    process = Process()
    process.connections = 20_000
    process.bytes += 20_000 * (90 << 10)
    assert process.bytes > LIMIT
    assert process.kinds(10) == []
    assert Step.REBIND in process.kinds(20, per_s=100 * MIB)


def test_it_looks_ten_times_a_second() -> None:
    """Between two looks nothing is measured, whatever wakes the loop."""
    process = Process()
    process.watchdog.look(process.now)
    process.bytes = 2 * LIMIT
    assert process.watchdog.look(process.now + LOOK_S / 2) is Step.NOTHING
    assert process.watchdog.due_at == process.now + LOOK_S


def test_off_is_off() -> None:
    """A limit of 0: never measured, never due."""
    process = Process(limit=0)
    process.bytes = 10**12
    assert process.kinds(5) == []
    assert process.watchdog.due_at == float("inf")


def test_fast_growth_is_suspicious_at_once() -> None:
    """Half a gigabyte a second: culprits are looked for long before the limit; calm again when it is over."""
    process = Process()
    process.watch(1)
    steps = process.watch(0.6, per_s=500 * MIB)
    assert steps[0][1] is Step.SUSPECT
    assert process.bytes < LIMIT
    process.bytes = 25 * MIB
    assert process.kinds(1) == [Step.CALM]


def test_slow_growth_is_suspicious_at_half_of_the_limit() -> None:
    """However slowly it came there."""
    process = Process()
    process.watch(1)
    process.bytes = LIMIT // 2 + GROWTH
    process.watch(60)
    assert set(process.kinds(5)) == {Step.SUSPECT}


def test_the_limit_is_a_rebind() -> None:
    """One, when memory is below the limit afterwards; and freed memory is given back to the system."""
    process = Process()
    process.watch(1)
    process.bytes = LIMIT + 1
    assert process.kinds(LOOK_S) == [Step.REBIND]
    process.bytes = 30 * MIB
    assert process.kinds(60) == []
    assert process.trims >= 1


def test_an_attacker_that_comes_back_is_a_rebind_each_time() -> None:
    """Memory that grows again right after a rebind never gets far beyond the limit."""
    process = Process()
    process.watch(1)
    rebinds, peak = 0, 0
    for _ in range(400):
        for step in process.kinds(LOOK_S, per_s=500 * MIB):
            if step is Step.REBIND:
                rebinds += 1
                process.bytes = 30 * MIB
            assert step is not Step.USELESS
        peak = max(peak, process.bytes)
    assert 15 <= rebinds <= 25
    assert peak < 1.2 * LIMIT


def test_memory_that_is_not_the_sockets_does_not_flap() -> None:
    """Where a rebind frees nothing it says so, and waits twice as long each time."""
    process = Process()
    process.watch(1)
    process.bytes = LIMIT + 100 * MIB
    steps = process.watch(600)
    rebinds = [at for at, step in steps if step is Step.REBIND]
    useless = [at for at, step in steps if step is Step.USELESS]
    assert len(rebinds) == len(useless) == 6
    gaps = [later - earlier for earlier, later in itertools.pairwise(rebinds)]
    assert all(later > 1.8 * earlier for earlier, later in itertools.pairwise(gaps))
    assert useless[0] - rebinds[0] <= SETTLE_S + 2 * LOOK_S


def test_growth_after_a_useless_rebind_does_not_wait() -> None:
    """What has grown by a quarter of the limit since may well be the socket's: no backoff holds for it."""
    process = Process()
    process.watch(1)
    process.bytes = LIMIT + 1
    assert process.kinds(3).count(Step.USELESS) == 1
    process.bytes += LIMIT // 4 + MIB
    assert process.kinds(2 * LOOK_S)[0] is Step.REBIND


def test_a_cut_culprits_memory_is_given_back() -> None:
    """`freed` asks for a trim soon, also where memory is not high."""
    process = Process()
    process.watch(1)
    process.watchdog.freed(process.now)
    process.watch(1)
    assert process.trims == 1


def test_this_process_can_be_measured_and_trimmed() -> None:
    """Anonymous memory counts, and grows by what is written to."""
    before = anonymous_bytes()
    held = bytearray(b"x" * (64 * MIB))
    assert 32 * MIB < anonymous_bytes() - before < 200 * MIB
    del held
    trim()
    assert 0 < anonymous_bytes() < before + 32 * MIB
