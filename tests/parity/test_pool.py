"""The pool of threads: used by many callers at once, by forked children, and without the interpreter's lock."""

import multiprocessing
import threading
from types import ModuleType
from typing import Any

import numpy as np
import pytest

N = 300_001


def norm_in_child(native: ModuleType, x: Any, queue: Any) -> None:
    """What a forked child computes."""
    queue.put(native.sum_squares(x, threads=3))


@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*:DeprecationWarning"
)  # forking with threads is the point
def test_a_forked_child_computes(native: ModuleType) -> None:
    """A child of a process whose pool has started makes its own pool, and does not hang."""
    x = np.arange(N, dtype=np.float32)
    expected = native.sum_squares(x, threads=3)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=norm_in_child, args=(native, x, queue))
    child.start()
    child.join(30)
    alive = child.is_alive()
    if alive:
        child.kill()
        child.join()
    assert not alive
    assert queue.get() == expected
    assert native.sum_squares(x, threads=3) == expected


def test_many_callers_share_the_pool(native: ModuleType) -> None:
    """Eight threads at once, each with a job of its own; nobody gets another's numbers."""
    vectors = [np.full(N, i, np.float32) for i in range(8)]
    wrong: list[tuple[int, float]] = []
    together = threading.Barrier(len(vectors))

    def work(i: int) -> None:
        together.wait()
        for _ in range(10):
            found = native.sum_squares(vectors[i], threads=3)
            if found != float(i * i * N):
                wrong.append((i, found))

    callers = [threading.Thread(target=work, args=(i,)) for i in range(len(vectors))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_two_threads_may_add_to_one_sum(native: ModuleType) -> None:
    """An Accumulator is safe to share; the order of arrival does not matter anyway."""
    sums = native.Accumulator(5000, frac_bits=20)
    payload = np.ones(5000, np.float32).tobytes()

    def work() -> None:
        for _ in range(101):
            sums.add(payload)
            sums.add(bytearray(payload))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (sums.totals() == (4 * 202) << 20).all()
