"""Task ids: a capability that nobody can forge, move to another worker, or turn against another model."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmq.broker.tasks import Claim, TaskIds, task_seed
from fedmq.fedcore import wire

FEDERATION = b"f" * 16
KEY = bytes(range(32))
DIGEST = b"d" * 16


def ids(*, federation: bytes = FEDERATION, key: bytes = KEY, boot: bytes = b"first---") -> TaskIds:
    return TaskIds(federation, key, boot)


kinds = st.sampled_from(["fit", "evaluate", "init"])
workers = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=32)
versions = st.integers(0, 2**53 - 1)
digests = st.binary(max_size=16)


class TestMake:
    @given(kinds, workers, versions, digests)
    def test_says_what_it_is_and_is_known(
        self, kind: wire.TaskKind, worker: str, version: int, digest: bytes
    ) -> None:
        """`read` gives back kind and version; `check` knows it, for this worker and this model."""
        task = ids().make(kind, worker, version, digest)
        assert TaskIds.read(task) == Claim(kind, version)
        assert ids().check(task, worker, digest)

    def test_a_workers_ids_do_not_tell_how_many_others_were_asked(self) -> None:
        """They are the same whoever is asked in between: nobody may count a secret sample from its own."""
        alone, among = ids(), ids()
        mine = [alone.make("fit", "a", version, DIGEST) for version in range(3)]
        for version in range(3):
            assert among.make("fit", "a", version, DIGEST) == mine[version]
            others = {among.make("fit", f"other {i}", version, DIGEST) for i in range(version + 2)}
            assert len(others | set(mine)) == len(others) + 3

    def test_fits_the_wire(self) -> None:
        """37 bytes, as its module says, and a task id to any peer."""
        task = ids().make("fit", "ward-3", 7, DIGEST)
        assert len(task) == 37
        assert wire.decode(wire.encode(wire.Fail(task=task)), wire.TO_BROKER)[0] == wire.Fail(task=task)

    def test_no_two_are_the_same(self) -> None:
        """For the same work, in one life of a broker and across two."""
        first, second = ids(), ids(boot=b"second--")
        made = [some.make("fit", "ward-3", 7, DIGEST) for some in (first, second) for _ in range(100)]
        assert len(set(made)) == 200

    def test_the_form_never_changes(self) -> None:
        """A broker of tomorrow recognises the work that today's handed out."""
        task = ids().make("fit", "ward-3", 7, DIGEST)
        head = "01" + "0000000000000007" + b"first---".hex() + "00000000"
        assert task.hex() == head + "0f40db10d5d3813cc147709b550a2d24"


class TestCheck:
    def test_knows_the_work_of_an_earlier_life(self) -> None:
        """Another boot, the same state folder: a restart loses no training."""
        task = ids(boot=b"first---").make("fit", "ward-3", 7, DIGEST)
        assert ids(boot=b"second--").check(task, "ward-3", DIGEST)

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(ids(federation=b"g" * 16), id="another federation"),
            pytest.param(ids(federation=FEDERATION + b"\0"), id="a longer federation id"),
            pytest.param(ids(key=bytes(32)), id="another key"),
        ],
    )
    def test_refuses_the_work_of_others(self, other: TaskIds) -> None:
        """An id holds in the federation and under the key that made it."""
        assert not other.check(ids().make("fit", "ward-3", 7, DIGEST), "ward-3", DIGEST)

    @pytest.mark.parametrize("worker", ["ward-4", "ward-", "ward-33", "Ward-3", ""])
    def test_refuses_another_worker(self, worker: str) -> None:
        """Nobody can answer, fail or spoil somebody else's task."""
        assert not ids().check(ids().make("fit", "ward-3", 7, DIGEST), worker, DIGEST)

    @pytest.mark.parametrize("digest", [b"e" * 16, b"d" * 15, b"d" * 17, b""])
    def test_refuses_another_model(self, digest: bytes) -> None:
        """The same version number with other weights, as after a restored backup."""
        assert not ids().check(ids().make("fit", "ward-3", 7, DIGEST), "ward-3", digest)

    def test_worker_and_digest_do_not_run_together(self) -> None:
        """What is left off one field and put onto the next is another message to the MAC."""
        task = ids().make("fit", "bc", 7, b"a")
        assert not ids().check(task, "c", b"ab")
        assert not ids().check(task, "abc", b"")

    @given(st.integers(0, 36), st.integers(1, 255))
    @example(0, 1 ^ 2)
    @example(8, 7 ^ 8)
    def test_refuses_any_changed_byte(self, position: int, flip: int) -> None:
        """Kind, version, boot, counter, MAC: every byte counts."""
        task = bytearray(ids().make("fit", "ward-3", 7, DIGEST))
        task[position] ^= flip
        assert not ids().check(bytes(task), "ward-3", DIGEST)

    @given(st.binary(max_size=64))
    def test_refuses_noise(self, task: bytes) -> None:
        """Of any length, without an exception."""
        assert not ids().check(task, "ward-3", DIGEST)

    @pytest.mark.parametrize("length", [0, 1, 20, 21, 36, 38, 64])
    def test_refuses_other_lengths(self, length: int) -> None:
        """A part of an id, or more than one, is none."""
        task = ids().make("fit", "ward-3", 7, DIGEST) + bytes(64)
        assert TaskIds.read(task[:length]) is None
        assert not ids().check(task[:length], "ward-3", DIGEST)


def test_read_knows_no_fourth_kind() -> None:
    """An id whose kind byte is none of the three claims nothing."""
    task = bytes(ids().make("fit", "ward-3", 7, DIGEST))
    assert TaskIds.read(b"\x00" + task[1:]) is None
    assert TaskIds.read(b"\x04" + task[1:]) is None


@pytest.mark.parametrize("boot", [b"", b"short", b"much too long"])
def test_boot_is_eight_bytes(boot: bytes) -> None:
    """Said at start, not at the first task."""
    with pytest.raises(ValueError, match="expected 8"):
        ids(boot=boot)


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 64])
def test_key_is_32_bytes(key: bytes) -> None:
    """Above all never empty: BLAKE2 without a key is a MAC that anybody can compute."""
    with pytest.raises(ValueError, match="expected 32"):
        ids(key=key)


class TestSeed:
    @given(st.integers(0, 2**63 - 1), workers, versions, st.integers(0, 1000))
    def test_is_a_uint64_and_repeats(self, seed: int, worker: str, version: int, nth: int) -> None:
        """The same in every run, and it fits into a TASK."""
        drawn = task_seed(seed, worker, version, nth)
        assert 0 <= drawn < 2**64
        assert drawn == task_seed(seed, worker, version, nth)

    def test_differs_with_each_argument(self) -> None:
        """Two tasks never draw the same batches, not even when names look like numbers."""
        seeds = {
            task_seed(seed, worker, version, nth)
            for seed in (0, 1, 11)
            for worker in ("a", "b", "1", "a/1", "1/a", "a/1/1")
            for version in (0, 1, 11)
            for nth in (0, 1, 11)
        }
        assert len(seeds) == 3 * 6 * 3 * 3

    def test_never_changes(self) -> None:
        """A run of last year can be repeated with this year's release."""
        assert task_seed(0, "ward-3", 7) == 12_777_575_849_872_340_645
        assert task_seed(0, "ward-3", 7, nth=0) == task_seed(0, "ward-3", 7)
