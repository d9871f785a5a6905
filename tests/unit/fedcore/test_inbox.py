"""The inbox: many threads in, one out, one wake-up for all that waits."""

import select
import signal
import threading

from fedmq.fedcore.inbox import Inbox


def readable(inbox: Inbox[int]) -> bool:
    return bool(select.select([inbox.fileno()], [], [], 0)[0])


def test_it_wakes_while_items_wait() -> None:
    """However many there are, one drain quiets it."""
    inbox: Inbox[int] = Inbox()
    assert not readable(inbox)
    for item in range(1000):
        inbox.put(item)
    assert readable(inbox)
    assert inbox.drain() == list(range(1000))
    assert not readable(inbox)
    assert inbox.drain() == []
    inbox.close()


def test_nothing_is_lost_or_doubled_between_threads() -> None:
    """Each thread's items come out once and in its order, and the reader never sleeps through one."""
    inbox: Inbox[int] = Inbox()
    threads = [
        threading.Thread(target=lambda start=start: [inbox.put(start + i) for i in range(2000)])
        for start in range(0, 8000, 2000)
    ]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    while len(taken) < 8000:
        assert select.select([inbox.fileno()], [], [], 10)[0]
        taken += inbox.drain()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(8000))
    for start in range(0, 8000, 2000):
        mine = [item for item in taken if start <= item < start + 2000]
        assert mine == sorted(mine)
    inbox.close()


def test_a_signal_handler_may_put_in_the_middle_of_a_put() -> None:
    """SIGTERM may come while the main thread itself is putting: no deadlock, nothing lost."""
    inbox: Inbox[int] = Inbox()
    signals = 0

    def handler(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        inbox.put(-1)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for item in range(20_000):
            inbox.put(item)
            if item % 100 == 0:
                inbox.drain()
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert signals
    inbox.close()


def test_after_close_nothing_happens() -> None:
    """A thread that finishes late does no harm."""
    inbox: Inbox[int] = Inbox()
    inbox.close()
    inbox.put(1)
    inbox.close()
