"""`fedmq status`: from the journal when no broker runs, and how a status looks."""

import json
from pathlib import Path

import pytest

from fedmq.cli import status_view

STATUS = {
    "federation": "wards",
    "id": "ab" * 16,
    "state": "stalled",
    "reason": "needs 2 more workers",
    "version": 12,
    "mode": "async",
    "buffer": {"number": 12, "have": 7, "of": 10, "frozen": 0},
    "round": None,
    "workers": [
        {
            "name": "ward\x1b[2J",
            "state": "training",
            "task": "00ff",
            "version": 12,
            "since_s": 75.2,
            "updates": 4,
        },
        {
            "name": "[red]ward[/]",
            "state": "idle",
            "task": None,
            "version": None,
            "since_s": 3,
            "updates": None,
        },
    ],
    "metrics": {"federated": {"version": 11, "loss": 0.21, "accuracy": 0.93123}},
    "updates": {"accepted": 10, "rejected": 0, "stale": 1},
    "bytes_up": 1_234_567,
    "bytes_down": 999,
    "uptime_s": 266_500,
    "kernels": "native",
    "endpoint": "tcp://127.0.0.1:5560",
}


def test_without_a_broker_the_journal_speaks(fedmq, state: Path) -> None:
    """It says that the broker is stopped, and what is known."""
    code, out, _ = fedmq("status", state, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["federation"], found["state"], found["version"]) == ("wards", "stopped", 2)
    assert found["buffer"] == {"number": 2, "have": 0, "of": 10, "frozen": 0}
    assert found["metrics"] == {"federated": {"version": 2, "accuracy": 0.8, "loss": 0.4}}
    assert found["updates"] == {"accepted": 20, "stale": 2}
    assert found["workers"] == []


def test_plain_lines_where_there_is_no_terminal(fedmq, state: Path) -> None:
    """One fact a line, for grep."""
    code, out, _ = fedmq("status", state)
    assert code == 0
    assert "state       stopped\n" in out
    assert "metrics     version 2: accuracy 0.8, loss 0.4\n" in out


def test_watching_ends_with_the_broker(fedmq, state: Path) -> None:
    """One summary line; nothing more would come."""
    code, out, _ = fedmq("status", state, "--watch")
    assert code == 0
    assert out.startswith("version 2  stopped  buffer 2: 0 of 10 updates  0 workers")
    assert out.count("\n") == 1


def test_the_config_file_stands_for_its_folder(fedmq, state: Path) -> None:
    """`fedmq status federation.toml` is what one types first."""
    config = state.parent / "federation.toml"
    config.write_text("[federation]\nname = 'wards'\n")
    assert json.loads(fedmq("status", config, "--json")[1])["version"] == 2


@pytest.mark.parametrize("command", ["status", "history", "pause", "resume", "stop"])
def test_a_folder_that_is_not_there(fedmq, tmp_path: Path, command: str) -> None:
    """Exit code 6, and nothing is made."""
    code, _, err = fedmq(command, tmp_path / "nowhere")
    assert code == 6
    assert err.startswith(f"fedmq: {tmp_path / 'nowhere'}: there is no such state folder")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_else(fedmq, tmp_path: Path) -> None:
    """It is not taken for a state folder."""
    code, _, err = fedmq("status", tmp_path)
    assert code == 6
    assert "is not the state folder of a broker" in err


@pytest.mark.parametrize("command", [["pause"], ["resume"], ["stop"], ["evict", "w"], ["admit", "w"]])
def test_nobody_to_steer(fedmq, state: Path, command: list[str]) -> None:
    """Exit code 7: no broker is running there."""
    code, out, err = fedmq(command[0], state, *command[1:])
    assert (code, out) == (7, "")
    assert err == f"fedmq: no broker is running on state folder {state}\n"


class TestView:
    def test_a_summary_is_one_line(self) -> None:
        """Version, state, progress, workers, metrics, traffic."""
        assert status_view.summary(STATUS) == (
            "version 12  stalled: needs 2 more workers  buffer 12: 7 of 10 updates  "
            "2 workers (1 training, 1 idle)  version 11: accuracy 0.9312, loss 0.21  1.23 MB up, 999 B down"
        )

    def test_names_cannot_move_the_cursor(self) -> None:
        """Control characters are replaced in lines and tables."""
        assert all(line.isprintable() for line in status_view.lines(STATUS))

    def test_names_are_no_markup(self) -> None:
        """A worker called [red] is shown as it is called."""
        console = pytest.importorskip("rich.console").Console(width=100)
        with console.capture() as shown:
            console.print(status_view.rich_view(STATUS))
        assert "[red]ward[/]" in shown.get()
        assert "\x1b[2J" not in shown.get()

    def test_a_round_and_its_deadline(self) -> None:
        """How many are in, how many are needed, how long it may take."""
        opened = {"number": 3, "asked": 5, "have": 2, "needed": 4, "deadline_s": 125.0, "extensions": 0}
        assert status_view.progress({**STATUS, "round": opened}) == (
            "round 3: 2 updates of 5 asked, needs 4, 2 min 05 s left"
        )
        hidden = {**opened, "have": None, "deadline_s": None}
        assert status_view.progress({**STATUS, "round": hidden}) == "round 3: 5 asked, needs 4"

    def test_before_the_first_version(self) -> None:
        """There may be no version, no buffer and nobody there."""
        nothing = {**STATUS, "version": None, "buffer": None, "workers": [], "metrics": {}}
        assert "version     none yet" not in status_view.lines(nothing)
        assert status_view.summary(nothing).startswith("no version yet  stalled")

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.4, "0 s"), (59.9, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (360_000, "4 d 04 h")],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        """Two units are enough."""
        assert status_view.duration(seconds) == text

    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (999_600, "1 MB"),
            (1_234_567, "1.23 MB"),
            (5e15, "5e+03 TB"),
        ],
    )
    def test_sizes(self, count: float, text: str) -> None:
        """Decimal units, three digits."""
        assert status_view.size(count) == text
