"""What was left out: it changes together with the outbox, whenever a process dies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import StateError
from fedmq.worker import feedback as feedback_module
from fedmq.worker.feedback import Feedback

ONE, TWO = np.array([1.0, 2.0, 3.0], np.float32), np.array([10.0, 20.0, 30.0], np.float32)


def update(
    kept: Feedback, left: Any, *, task: bytes = b"t", layout: bytes = b"l", version: int = 1, end: bool = True
) -> list[float]:
    """An update that leaves `left` out; what earlier ones added to it."""
    delta = np.zeros_like(left)
    draft = kept.begin(task, "fed", layout, version, delta)
    draft.write(left)
    draft.finish()
    if end:
        kept.commit()
    return list(delta.tolist())


def held(folder: Path, **how: Any) -> list[float]:
    """What the next update would get."""
    return update(Feedback(folder), ONE, task=b"look", end=False, **how)


@pytest.mark.parametrize("fsync", [False, True])
def test_the_next_update_gets_what_the_last_one_left_out(tmp_path: Path, fsync: bool) -> None:
    """Zeros at first; in another process too."""
    kept = Feedback(tmp_path, fsync=fsync)
    assert update(kept, ONE) == [0, 0, 0]
    assert update(kept, TWO) == ONE.tolist()
    assert update(Feedback(tmp_path), ONE) == TWO.tolist()


def test_what_was_discarded_never_was(tmp_path: Path) -> None:
    """What is kept stays, and no file more; also where the next one begins without a word."""
    kept = Feedback(tmp_path)
    update(kept, ONE)
    update(kept, TWO, end=False)
    kept.discard()
    assert update(kept, TWO, end=False) == ONE.tolist()
    assert update(kept, TWO, task=b"u", end=False) == ONE.tolist()
    kept.discard()
    assert len(list(tmp_path.iterdir())) == 1
    kept.commit()
    assert held(tmp_path) == ONE.tolist()


@given(stored=st.booleans(), committed=st.booleans())
def test_after_a_kill_the_outbox_decides(
    tmp_path_factory: pytest.TempPathFactory, stored: bool, committed: bool
) -> None:
    """An entry in the outbox: this is what it left out, once. None: the update never was, and all is as before."""
    folder = tmp_path_factory.mktemp("feedback")
    update(Feedback(folder), ONE)
    update(Feedback(folder), TWO, task=b"\x07", end=stored and committed)
    for _ in range(2):
        Feedback(folder).recover({b"\x07"} if stored else set())
    assert held(folder) == (TWO if stored else ONE).tolist()


def test_each_federation_and_layout_has_its_own(tmp_path: Path) -> None:
    """What a federation's former model left out is forgotten when its new one leaves something out."""
    kept = Feedback(tmp_path)
    update(kept, ONE)
    draft = kept.begin(b"t", "other", b"l", 1, np.zeros(3, np.float32))
    draft.write(TWO)
    draft.finish()
    kept.commit()
    assert held(tmp_path) == ONE.tolist()
    assert held(tmp_path, layout=b"new") == [0, 0, 0]
    update(Feedback(tmp_path), ONE, layout=b"new")
    assert held(tmp_path) == [0, 0, 0]
    assert len(list(tmp_path.glob("*.left"))) == 2


def test_a_federation_that_went_back_gets_nothing(tmp_path: Path) -> None:
    """On an older version than the last one's it is another run of it."""
    update(Feedback(tmp_path), ONE, version=5)
    assert held(tmp_path, version=5) == ONE.tolist()
    assert held(tmp_path, version=4) == [0, 0, 0]


def test_what_was_cut_short_counts_as_zeros(tmp_path: Path) -> None:
    """A power cut may leave that; it is no reason to fail, nor to read beyond the end."""
    update(Feedback(tmp_path), ONE)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert held(tmp_path) == [0, 0, 0]


def test_it_is_read_by_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing as large as the model is read at a time."""
    monkeypatch.setattr(feedback_module, "TILE", 2)
    update(Feedback(tmp_path), ONE)
    assert held(tmp_path) == ONE.tolist()


def test_a_disk_that_refuses_is_a_reason(tmp_path: Path) -> None:
    """Which ends the task, and nothing else."""
    kept = Feedback(tmp_path / "gone")
    with pytest.raises(StateError, match="what the encoding leaves out cannot be kept: No such file"):
        kept.begin(b"t", "fed", b"l", 1, np.zeros(3, np.float32))
