"""`fedmq history` and `fedmq export`: what a state folder holds, without its broker."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedmq.broker.store.journal import Journal


class TestHistory:
    def test_json_has_a_row_per_version(self, fedmq, state: Path) -> None:
        """As the journal has them."""
        rows = json.loads(fedmq("history", state, "--json")[1])
        assert [row["version"] for row in rows] == [0, 1, 2]
        assert rows[1]["federated"] == {"accuracy": 0.9, "loss": 0.5}

    def test_csv_has_a_column_per_metric(self, fedmq, state: Path) -> None:
        """Empty where a version was not measured."""
        rows = list(csv.DictReader(io.StringIO(fedmq("history", state, "--csv")[1])))
        assert [row["federated.accuracy"] for row in rows] == ["", "0.9", "0.8"]
        assert [row["updates"] for row in rows] == ["0", "10", "10"]

    def test_a_table_for_people(self, fedmq, state: Path) -> None:
        """Columns are aligned."""
        lines = fedmq("history", state)[1].splitlines()
        assert len(lines) == 4
        assert len({len(line) for line in lines}) == 1
        assert "federated.loss" in lines[0]

    def test_no_version_yet(self, fedmq, tmp_path: Path) -> None:
        """Said to people; nothing and an empty array to programs."""
        Journal.open(tmp_path / "journal.db", "os").close()
        assert fedmq("history", tmp_path) == (0, "no version yet\n", "")
        assert fedmq("history", tmp_path, "--csv") == (0, "", "")
        assert fedmq("history", tmp_path, "--json") == (0, "[]\n", "")


class TestExport:
    def test_the_latest_by_default(self, fedmq, state: Path, tmp_path: Path) -> None:
        """With the dtypes and shapes that the model came with."""
        out = tmp_path / "out.safetensors"
        assert fedmq("export", state, out) == (0, f"wrote version 2 to {out}\n", "")
        tensors = safetensors.numpy.load_file(out)
        assert (tensors["w"].dtype, tensors["n"].shape) == (np.float64, ())
        assert np.array_equal(tensors["w"], np.full((2, 3), 2.0))

    @pytest.mark.parametrize(
        ("options", "version"),
        [
            (["--version", 0], 0),
            (["--best", "accuracy"], 1),
            (["--best", "loss"], 2),
            (["--best", "federated.accuracy"], 1),
        ],
    )
    def test_a_chosen_one(
        self, fedmq, state: Path, tmp_path: Path, options: list[object], version: int
    ) -> None:
        """By number, or the best by a metric; a loss is best where it is lowest."""
        out = tmp_path / "out.safetensors"
        assert fedmq("export", state, out, *options)[1] == f"wrote version {version} to {out}\n"

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--version", 9], 6, "version 9 is not kept; there are 0, 1, 2"),
            (
                ["--best", "f1"],
                6,
                "no kept version was measured by 'f1'; there are: federated.accuracy, federated.loss",
            ),
            (["--best", "loss", "--version", 1], 2, "--version and --best exclude each other."),
        ],
    )
    def test_what_cannot_be_chosen(
        self, fedmq, state: Path, tmp_path: Path, options: list[object], code: int, message: str
    ) -> None:
        """One line, and no file."""
        out = tmp_path / "out.safetensors"
        found = fedmq("export", state, out, *options)
        assert found[0] == code
        assert message in found[2]
        assert not out.exists()

    def test_a_file_that_is_there_stays(self, fedmq, state: Path, tmp_path: Path) -> None:
        """--force replaces it, in one step."""
        out = tmp_path / "out.safetensors"
        out.write_text("mine")
        code, _, err = fedmq("export", state, out)
        assert (code, out.read_text()) == (2, "mine")
        assert "--force overwrites it" in err
        assert fedmq("export", state, out, "--force")[0] == 0
        assert safetensors.numpy.load_file(out)
        assert not list(tmp_path.glob("*.part"))

    def test_a_folder_that_cannot_be_written(self, fedmq, state: Path, tmp_path: Path) -> None:
        """One line with the reason."""
        code, _, err = fedmq("export", state, tmp_path / "no" / "out.safetensors")
        assert code == 2
        assert "cannot be written: No such file or directory" in err
