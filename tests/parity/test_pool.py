"""The pool of threads: used by many callers at once, by forked children, and without the interpreter's lock."""

import multiprocessing
import subprocess
import sys
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


def add_in_child(native: ModuleType, sums: Any, payload: bytes, queue: Any) -> None:
    """What a forked child makes of a sum that its parent began."""
    sums.add(payload)
    queue.put((sums.totals().tobytes(), native.encode(np.ones(N, np.float32), "bf16")))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forks_of_a_process_at_work(native: ModuleType) -> None:
    """A child that is forked while another thread is inside the pool has a sum and a pool of its own."""
    payload = np.ones(N, np.float32).tobytes()
    sums = native.Accumulator(N, frac_bits=20, threads=3)
    sums.add(payload)  # waits for three more, unfolded, and is folded in each child
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            native.sum_squares(payload, threads=3)

    busy = threading.Thread(target=work)
    busy.start()
    try:
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        children = [
            context.Process(target=add_in_child, args=(native, sums, payload, queue)) for _ in range(4)
        ]
        for child in children:
            child.start()
        results = [queue.get() for _ in children]  # a child that hangs is pytest-timeout's to end
        for child in children:
            child.join()
    finally:
        enough.set()
        busy.join()
    expected = np.full(N, 2 << 20, np.int64).tobytes(), native.encode(np.ones(N, np.float32), "bf16")
    assert results == [expected] * 4
    assert (sums.totals() == 1 << 20).all()


SECOND_INTERPRETER = """
import importlib, threading
import numpy as np
from fedmq.fedcore.kernels import _native

for name in ("_interpreters", "_xxsubinterpreters"):  # Python's own, from 3.13 on and before
    try:
        interpreters = importlib.import_module(name)
        break
    except ModuleNotFoundError:
        continue

x = np.ones(300_001, np.float32)
wrong, enough = [], threading.Event()

def work():
    while not enough.is_set():
        if _native.sum_squares(x, threads=3) != x.size:
            wrong.append(True)

code = '''
try:
    import fedmq.fedcore.kernels
except ImportError:
    pass
else:
    raise SystemExit("a second interpreter has the kernels")
'''
busy = threading.Thread(target=work)
busy.start()
try:
    other = interpreters.create()
    failure = interpreters.run_string(other, code)  # 3.13 returns what failed, before that it was raised
    interpreters.destroy(other)
finally:
    enough.set()
    busy.join()
print("refused" if failure is None and not wrong else (failure, wrong))
"""


def test_a_second_interpreter_is_refused(native: ModuleType) -> None:
    """numpy serves one interpreter of a process, so fedmq does: another gets an ImportError and disturbs nobody.

    What may call at once is any number of threads of that one.
    """
    done = subprocess.run(
        [sys.executable, "-c", SECOND_INTERPRETER], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


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
