"""The cache of compiled kernels on disk, where it cannot be used."""

import errno
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core.caching import CacheImpl, IndexDataCacheFile

from torch_impl.train import Trainer
from twinsep import audio, checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.kernels import simd


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """An empty cache of its own for each test, and no warning given yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(simd, "_uncached", [])


def make():
    def double(x):
        return 2 * x

    return simd.compiled(double)


def test_functions_work_uncached_with_one_warning_where_no_folder_can_be_written(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="cannot be kept on disk .*neither this installation nor") as caught:
        functions = [make(), make()]
    assert len(caught) == 1
    assert [f(3) for f in functions] == [6, 6]


def test_functions_work_with_one_warning_where_the_disk_is_full(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    functions = [make(), make()]
    with pytest.warns(RuntimeWarning, match="No space left on device") as caught:
        assert [f(3) for f in functions] == [6, 6]
    assert len(caught) == 1


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_damaged_cache_is_made_again(tmp_path, suffix, left):
    assert make()(3) == 6
    (file,) = (tmp_path / "cache").rglob(f"*{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    again = make()
    assert again(3) == 6
    assert not again.stats.cache_hits
    assert file.stat().st_size == len(whole)
    last = make()
    assert last(3) == 6
    assert sum(last.stats.cache_hits.values()) == 1


NOWHERE = "from numba.core.caching import CacheImpl\nCacheImpl._locator_classes = []\n"


def run_command(*arguments):
    code = f"{NOWHERE}from twinsep import cli\ncli.main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_song_is_separated_without_a_cache(micro, tmp_path):
    checkpoints.write(tmp_path / "micro.safetensors", Checkpoint(micro, Trainer(micro).state()))
    noise = np.random.default_rng(0).standard_normal((2, 20_000))
    audio.write(tmp_path / "song.wav", (0.1 * noise).astype(np.float32), 44_100)
    arguments = ("--checkpoint", tmp_path / "micro.safetensors", "--out", tmp_path / "out")
    done = run_command("separate", tmp_path / "song.wav", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert (tmp_path / "out/song/instrumental.wav").exists()


def test_info_says_that_there_is_no_cache():
    done = run_command("info", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be kept on disk") == 1
    assert "cannot be used" not in done.stdout
