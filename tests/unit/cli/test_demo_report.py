"""What the demo says at its end: a document with fixed keys, and a table with the same numbers."""

import msgspec

from fedmq.cli.demo.report import Arm, Made, Report, footnotes, lines, rich_table, title

PLAIN = Made(
    versions=50, updates=150, bytes_up=12_000_000, bytes_down=9_950_000, digest="ab" * 16, kernels="native"
)
PRIVATE = Made(
    versions=80, updates=400, bytes_up=30_900_000, bytes_down=31_000_000, digest="cd" * 16, kernels="native"
)
REPORT = Report(
    data="digits",
    mode="async",
    partition="iid",
    app="numpy",
    seed=0,
    workers=5,
    central=Arm(name="centralised", accuracy=0.9749, seconds=0.61),
    federated=Arm(name="federated", accuracy=0.9694, seconds=2.4, made=PLAIN),
    private=Arm(name="with privacy", accuracy=0.9331, seconds=10.94, made=PRIVATE),
    epsilon=2.99937,
    delta=1e-5,
    noise_multiplier=6.334,
    sampling_rate=0.5,
    steps=80,
    seconds=15.0123,
)


def test_the_document_is_of_the_federation_without_privacy() -> None:
    """Its counts, bytes and digest; accuracies are fractions, of all three."""
    assert REPORT.document() == {
        "data": "digits",
        "mode": "async",
        "partition": "iid",
        "app": "numpy",
        "seed": 0,
        "workers": 5,
        "versions": 50,
        "updates": 150,
        "seconds": 15.012,
        "bytes_up": 12_000_000,
        "bytes_down": 9_950_000,
        "accuracy": {"centralized": 0.9749, "federated": 0.9694, "federated_dp": 0.9331},
        "epsilon": 2.99937,
        "delta": 1e-5,
        "kernels": "native",
        "model_digest": "ab" * 16,
    }


def test_the_table_is_aligned() -> None:
    """An arm a line, numbers to the right; the baseline is compared with nothing."""
    assert lines(REPORT) == [
        "              accuracy  vs. central  versions  updates       up     down  seconds",
        "centralised      97.5%                                                        0.6",
        "federated        96.9%         −0.5        50      150    12 MB  9.95 MB      2.4",
        "with privacy     93.3%         −4.2        80      400  30.9 MB    31 MB     10.9",
    ]


def test_a_federation_may_be_better() -> None:
    """Then the difference has a plus."""
    better = msgspec.structs.replace(
        REPORT, federated=msgspec.structs.replace(REPORT.federated, accuracy=0.9777)
    )
    assert "+0.3" in lines(better)[2]


def test_a_terminal_gets_the_same_cells() -> None:
    """Every column, every arm."""
    table = rich_table(REPORT)
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["centralised", "federated", "with privacy"]
    assert columns[1] == ["97.5%", "96.9%", "93.3%"]
    assert len(columns) == 8
    assert table.title == title(REPORT) == "digits, 5 workers (iid, async), numpy, native kernels, seed 0"


def test_the_footnotes_say_what_is_promised_and_who_is_trusted() -> None:
    """ε, δ, the noise, and the broker."""
    privacy, trusted = footnotes(REPORT)
    for part in ("ε = 3.00", "δ = 1e-05", "80 steps", "q = 0.5", "noise multiplier 6.334"):
        assert part in privacy
    assert trusted.startswith("Trusted: the broker")
