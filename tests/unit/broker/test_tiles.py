"""Tiles are made by several threads at a time, each with memory of its own, and finished in their order."""

import threading
from collections.abc import Callable

import pytest

from fedmq.broker.tiles import Finish, Work, in_turns

TILES = [slice(i, i + 1) for i in range(12)]
LIMIT_S = 20


def hand_of(work: Work) -> Callable[[], Work]:
    return lambda: work


def test_what_was_made_first_waits_for_its_turn() -> None:
    """The first tile takes longer than the next two; they are finished after it, and all in order."""
    ready = threading.Semaphore(0)
    finished: list[int] = []

    def work(tile: slice) -> Finish:
        if tile.start == 0:
            for _ in range(2):
                assert ready.acquire(timeout=LIMIT_S)
        ready.release()
        return lambda: finished.append(tile.start)

    in_turns(TILES, hand_of(work), 3)
    assert finished == list(range(12))


def test_a_thread_has_a_hand_of_its_own() -> None:
    """It is made once in each thread, and no other thread uses it."""
    together = threading.Barrier(3, timeout=LIMIT_S)
    made: list[int] = []

    def hand() -> Work:
        owner = threading.get_ident()
        made.append(owner)

        def work(tile: slice) -> Finish:
            assert threading.get_ident() == owner
            if tile.start < 3:
                together.wait()
            return lambda: None

        return work

    in_turns(TILES, hand, 3)
    assert len(set(made)) == len(made) == 3


@pytest.mark.parametrize(("tiles", "hands"), [(TILES, 1), (TILES[:1], 3), ([], 3)])
def test_little_work_needs_no_threads(tiles: list[slice], hands: int) -> None:
    """One hand, or one tile: the caller's thread does it."""
    seen: list[tuple[int, int]] = []

    def work(tile: slice) -> Finish:
        return lambda: seen.append((tile.start, threading.get_ident()))

    in_turns(tiles, hand_of(work), hands)
    assert seen == [(tile.start, threading.get_ident()) for tile in tiles]


@pytest.mark.parametrize("hands", [1, 3])
@pytest.mark.parametrize("while_finishing", [False, True])
def test_the_first_tile_that_fails_ends_it(hands: int, while_finishing: bool) -> None:
    """Its error is raised, of several the first one's; those before it are finished, and none after it."""
    finished: list[int] = []

    def finish(i: int) -> None:
        if i >= 5:
            raise ValueError(f"tile {i}")
        finished.append(i)

    def work(tile: slice) -> Finish:
        if tile.start >= 5 and not while_finishing:
            raise ValueError(f"tile {tile.start}")
        return lambda: finish(tile.start)

    with pytest.raises(ValueError, match="tile 5"):
        in_turns(TILES, hand_of(work), hands)
    assert finished == list(range(5))


def test_the_process_need_not_wait_for_them() -> None:
    """Whoever helps is a daemon: an interpreter that ends joins no other thread."""
    helpers: list[bool] = []
    both = threading.Barrier(2, timeout=LIMIT_S)

    def work(tile: slice) -> Finish:
        if tile.start < 2:
            both.wait()
        if threading.current_thread() is not caller:
            helpers.append(threading.current_thread().daemon)
        return lambda: None

    caller = threading.current_thread()
    in_turns(TILES, hand_of(work), 2)
    assert set(helpers) == {True}


def test_fewer_threads_than_asked_for_do_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have none left: then the caller's is enough."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    finished: list[int] = []
    in_turns(TILES, hand_of(lambda tile: lambda: finished.append(tile.start)), 4)
    assert finished == list(range(12))


def test_what_is_no_exception_ends_it_too() -> None:
    """Ctrl-C in the caller: no thread waits for a turn that never comes."""

    def work(tile: slice) -> Finish:
        if tile.start == 3:
            raise KeyboardInterrupt
        return lambda: None

    with pytest.raises(KeyboardInterrupt):
        in_turns(TILES, hand_of(work), 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "fold"]
