"""A home that cannot be written, or none at all, while the cache can."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pictures_made import plain, table

from flowimg.data.cache import cache_folder
from flowimg.errors import SettingsError
from flowimg.machine.home import NOWHERE, settle_home
from flowimg.names import on_disk

NAMES = ("HF_HOME", "HF_DATASETS_CACHE", "TORCH_HOME", "MPLCONFIGDIR")
MORE = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "FLOWIMG_CACHE")


@pytest.fixture
def settled(monkeypatch, tmp_path):
    """The variables that are set for a home, with the cache that is given or one that can be written."""

    def settled(home, cache=tmp_path / "cache", **given):
        with monkeypatch.context() as patch:
            for name in (*NAMES, *MORE, "HOME"):
                patch.delenv(name, raising=False)
            if home is None:  # a number without a name, as in a container
                patch.setattr("os.path.expanduser", lambda path: path)
            for name, value in {**given, **({} if home is None else {"HOME": home})}.items():
                patch.setenv(name, str(value))
            for _ in range(2):  # by the default cache, and by that of a run
                settle_home(cache)
            return {name: os.environ[name] for name in NAMES if name in os.environ}

    return settled


def test_a_home_that_can_be_written_is_used(settled, tmp_path):
    assert settled(tmp_path) == {} and settled(tmp_path / "not" / "there") == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/home", None])
def test_packages_write_to_the_cache_instead(home, settled, tmp_path):
    assert settled(home) == {name: str(tmp_path / "cache" / "home" / name.lower()) for name in NAMES}


def test_a_file_is_no_home(settled, tmp_path):
    (tmp_path / "file").touch()
    assert set(settled(tmp_path / "file")) == set(NAMES)


def test_downloads_that_can_only_be_read_are_still_found(settled, tmp_path, monkeypatch):
    (tmp_path / ".cache" / "huggingface" / "hub").mkdir(parents=True)
    (tmp_path / ".cache" / "torch").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) == tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    assert set(settled(tmp_path)) == {"HF_DATASETS_CACHE", "MPLCONFIGDIR"}


def test_what_is_set_is_kept(settled, tmp_path):
    given = {"HF_HOME": str(tmp_path / "hub"), "MPLCONFIGDIR": str(tmp_path / "plots")}
    found = settled("/dev/null", **given)
    assert found == given | {"TORCH_HOME": str(tmp_path / "cache" / "home" / "torch_home")}
    assert set(settled("/dev/null", XDG_CACHE_HOME=tmp_path, XDG_CONFIG_HOME=tmp_path)) == set()


def test_without_a_home_nothing_is_written_below_a_folder_called_tilde(settled, tmp_path, monkeypatch):
    assert all(Path(path).is_relative_to(NOWHERE) for path in settled(None, NOWHERE / "flowimg").values())
    for name in (*MORE, "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert cache_folder() == NOWHERE / "flowimg"  # who needs it is told; who does not, is not
    assert cache_folder(str(tmp_path)) == tmp_path
    with pytest.raises(SettingsError, match=r"^~/x: the home folder in it is unknown: set HOME"):
        on_disk("~/x")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--stream", "true"]])
def test_parquet_is_read_without_a_home(more, tmp_path):
    table(tmp_path / "x.parquet", image=plain(8), label=[0, 1] * 4)
    kept = {name: value for name, value in os.environ.items() if name not in (*NAMES, *MORE)}

    def check(**given):
        command = [sys.executable, "-m", "flowimg", "data", "check", tmp_path / "x.parquet", *more]
        env = {**kept, "HOME": "/dev/null", **given}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert check(FLOWIMG_CACHE=str(tmp_path / "cache")) == (0, "")
    more += ["--cache", str(tmp_path / "other")]
    assert check()[0] == 0
    del more[-2:]
    code, said = check()
    assert (
        code == 4 and said.count("\n") == 1 and "name another folder by HF_HOME, $FLOWIMG_CACHE or data.cache" in said
    )
