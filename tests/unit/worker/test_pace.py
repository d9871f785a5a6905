"""The size of pieces: what the broker allows, less where a link cannot carry it."""

from fedmq.worker.pace import GROW_AFTER, PIECE_MAX, PIECE_MIN, Pace


def test_pieces_are_blocks_and_no_larger_than_a_frame_may_be() -> None:
    """A broker's block is taken up to what this worker receives in one frame."""
    pace = Pace()
    pace.terms(1 << 20)
    assert pace.piece == 1 << 20
    pace.terms(1 << 30)
    assert pace.piece == PIECE_MAX


def test_stalls_halve_down_to_a_floor_and_movement_doubles() -> None:
    """16 KiB at least, or the block where that is smaller; back to the block after a while."""
    pace = Pace()
    pace.terms(1 << 20)
    for _ in range(10):
        pace.stalled()
    assert pace.piece == PIECE_MIN
    for _ in range(GROW_AFTER):
        pace.moved()
    assert pace.piece == 2 * PIECE_MIN
    for _ in range(20 * GROW_AFTER):
        pace.moved()
    assert pace.piece == 1 << 20
    pace.terms(1024)
    pace.stalled()
    assert pace.piece == 1024
