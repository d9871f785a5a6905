"""Patience: what a peer may say that moves nothing, and what becomes of one that says more."""

from fedmq.broker.patience import PATIENCE, PATIENCE_PER_S, REST_MAX_S, REST_S, WORK, Patience


def flood(patience: Patience, now: float, cost: float = 1.0) -> int:
    """Messages that are borne at one moment."""
    said = 0
    while patience.spend(cost, now):
        said += 1
    return said


def test_a_burst_is_borne_and_a_flood_is_not() -> None:
    """As many as the bucket holds; the next one is too much, and the peer has to rest."""
    patience = Patience(0.0)
    assert flood(patience, 0.0) == PATIENCE
    assert patience.rest_s(0.0) == REST_S
    assert patience.rest_s(REST_S) == 0.0


def test_time_gives_patience_back() -> None:
    """So much a second, never more than the bucket holds."""
    patience = Patience(0.0)
    for second in range(1000):
        for _ in range(int(PATIENCE_PER_S)):
            assert patience.spend(1.0, float(second))
    patience = Patience(0.0)
    assert flood(patience, 1e6) == PATIENCE


def test_work_gives_patience_back() -> None:
    """A worker whose updates are accepted may say all that belongs to them, however fast it is."""
    patience = Patience(0.0)
    for _ in range(10_000):
        for _ in range(int(WORK)):
            assert patience.spend(1.0, 0.0)
        patience.earn()


def test_who_goes_on_rests_twice_as_long() -> None:
    """Up to ten minutes; one that behaved for as long begins at the beginning."""
    patience, now, rests = Patience(0.0), 0.0, []
    for _ in range(9):
        flood(patience, now)
        rests.append(patience.rest_s(now))
        now += rests[-1]
    assert rests[:3] == [REST_S, 2 * REST_S, 4 * REST_S]
    assert rests[-1] == REST_MAX_S
    now += 2 * REST_MAX_S
    flood(patience, now)
    assert patience.rest_s(now) == REST_S
