"""`fedmq init`: what it writes is a config, and nothing is overwritten by accident."""

from pathlib import Path

import pytest

from fedmq.fedcore import config


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_what_it_writes_loads(fedmq, tmp_path: Path, mode: str) -> None:
    """All defaults, under the given name and mode."""
    path = tmp_path / "federation.toml"
    code, out, _ = fedmq("init", path, "--name", "wards", "--mode", mode)
    assert (code, out) == (0, f"wrote {path}; start it with: fedmq broker {path}\n")
    assert config.load(path) == config.parse(
        {"federation": {"name": "wards"}, "mode": {"kind": mode}}, base_dir=tmp_path
    )


def test_a_folder_gets_a_federation_toml(fedmq, tmp_path: Path) -> None:
    """Also one that is not there yet."""
    assert fedmq("init", tmp_path / "new")[0] == 0
    assert config.load(tmp_path / "new" / "federation.toml").federation.state == str(
        tmp_path / "new" / "state"
    )


def test_the_current_folder_is_the_default(fedmq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fedmq init` then `fedmq broker` needs no path."""
    monkeypatch.chdir(tmp_path)
    assert fedmq("init")[0] == 0
    assert (tmp_path / "federation.toml").exists()


def test_a_file_that_is_there_stays(fedmq, tmp_path: Path) -> None:
    """--force overwrites it."""
    path = tmp_path / "federation.toml"
    path.write_text("mine")
    code, _, err = fedmq("init", path)
    assert (code, err) == (2, f"fedmq: {path}: is there already; --force overwrites it\n")
    assert path.read_text() == "mine"
    assert fedmq("init", path, "--force")[0] == 0
    assert config.load(path).federation.name == "federation"


def test_a_bad_name_writes_nothing(fedmq, tmp_path: Path) -> None:
    """It is refused as the broker would."""
    code, _, err = fedmq("init", tmp_path / "f.toml", "--name", "a/b")
    assert code == 2
    assert 'federation.name is "a/b"' in err
    assert not (tmp_path / "f.toml").exists()


def test_a_folder_that_cannot_be_written(fedmq, tmp_path: Path) -> None:
    """One line with the reason."""
    (tmp_path / "file").write_text("")
    code, _, err = fedmq("init", tmp_path / "file" / "f.toml")
    assert code == 2
    assert err.count("\n") == 1
