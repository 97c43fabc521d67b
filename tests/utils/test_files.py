"""Atomic writes and checkpoints."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint, native
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.utils import files


def example():
    rng = np.random.default_rng(0)
    tensors = {f"{p}/layer.weight": rng.standard_normal((3, 5)).astype(np.float32) for p in ("model", "ema", "adam_m")}
    return Checkpoint(preset("tiny"), tensors, 7, {"next_example": 14}, {"progression": {"step": 7}})


def test_round_trip_is_exact(tmp_path):
    written = example()
    checkpoints.write(tmp_path / "c.safetensors", written)
    found = checkpoints.read(tmp_path / "c.safetensors")
    assert (found.config, found.step, found.data, found.provenance) == (
        written.config,
        7,
        {"next_example": 14},
        {"progression": {"step": 7}},
    )
    assert found.tensors.keys() == written.tensors.keys()
    assert all(np.array_equal(found.tensors[name], t) for name, t in written.tensors.items())
    assert list(tmp_path.iterdir()) == [tmp_path / "c.safetensors"]


def test_prefixes_select_tensors_and_weights_default_to_the_model(tmp_path):
    checkpoints.write(tmp_path / "c.safetensors", example())
    found = checkpoints.read(tmp_path / "c.safetensors", prefixes=("model/",))
    assert list(found.tensors) == ["model/layer.weight"]
    assert list(found.weights("ema")) == ["layer.weight"]  # no average: the weights themselves


def test_the_same_checkpoint_is_the_same_bytes(tmp_path):
    for name in "ab":
        checkpoints.write(tmp_path / name, example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_checkpoints_are_refused_in_a_sentence(tmp_path):
    good = tmp_path / "good.safetensors"
    checkpoints.write(good, example())
    cases = {"missing": "does not exist", "folder": "holds no config.json"}
    (tmp_path / "folder").mkdir()
    for name, content, sentence in [
        ("empty", b"", "not a whole safetensors file"),
        ("text", b"hello there, this is no checkpoint", "not a whole safetensors file"),
        ("cut", good.read_bytes()[:-20], "not a whole safetensors file"),
    ]:
        (tmp_path / name).write_bytes(content)
        cases[name] = sentence
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "other")
    cases["other"] = "not a checkpoint that twinsep wrote"
    fields = {"format": native.FORMAT, "config": {}, "step": 0, "data": {}, "provenance": {}, "digests": {}}
    for name, changes, sentence in [
        ("format", {"format": 99}, "format 99 is not supported; this version reads 1"),
        ("config", {}, "configuration: model"),
    ]:
        text = json.dumps(fields | changes)
        metadata = {"twinsep": json.dumps({"digest": native._digest(text.encode()), "values": text})}
        save_file({}, tmp_path / name, metadata)
        cases[name] = sentence
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "damaged", {"twinsep": "{"})
    cases["damaged"] = "metadata is damaged"
    for name, sentence in cases.items():
        with pytest.raises(InputError, match=sentence) as caught:
            checkpoints.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("prefixes", [None, ("model/",)])
def test_a_flipped_bit_is_found_anywhere(tmp_path, prefixes):
    path = tmp_path / "c.safetensors"
    checkpoints.write(path, example())
    whole = path.read_bytes()
    step = re.search(rb"step\W+(\d)", whole).start(1)
    size = int.from_bytes(whole[:8], "little")
    weight = json.loads(whole[8 : 8 + size])["model/layer.weight"]["data_offsets"][0] + 8 + size
    for place in (step, weight):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(bytes(broken))
        with pytest.raises(InputError, match="damaged since it was written"):
            checkpoints.read(path, prefixes=prefixes)


def test_names_and_shapes_must_fit():
    shapes = {"a": (2,), "b": (3, 4)}
    good = {"a": np.zeros(2), "b": np.zeros((3, 4))}
    checkpoints.check_names(good, shapes, "x")
    for bad, sentence in [
        ({"a": np.zeros(2)}, "no weight 'b'"),
        (good | {"a": np.zeros(3)}, r"'a' has shape \(3,\), the model needs \(2,\)"),
        (good | {"c": np.zeros(3)}, "'c' has no place"),
    ]:
        with pytest.raises(InputError, match=sentence):
            checkpoints.check_names(bad, shapes, "x")


# ---------------------------------------------------------------------------- writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_has_its_name_when_it_is_complete(tmp_path, overwrite):
    path = tmp_path / "new" / "folder" / ("x" * 246 + ".wav")
    usual = tmp_path / "usual"
    usual.touch()
    with files.atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(b"complete")
        assert names(path.parent) == [temporary.name]
        assert (temporary.name[0], temporary.suffix) == (".", ".wav")
    assert path.read_bytes() == b"complete"
    assert path.stat().st_mode == usual.stat().st_mode
    files.write_atomically(path, b"anew")
    assert path.read_bytes() == b"anew"
    assert names(path.parent) == [path.name]


def test_an_existing_file_is_refused_or_replaced(tmp_path):
    path = tmp_path / "f"
    for there_before in (True, False):
        path.unlink(missing_ok=True)
        if there_before:
            path.write_text("another's")
        sentence = "f exists; pass --overwrite to replace it, or choose another --out$"
        with pytest.raises(InputError, match=sentence), files.atomic_path(path, overwrite=False) as temporary:  # noqa: PT012
            assert not there_before
            temporary.write_text("ours")
            path.write_text("another's")  # meanwhile
        assert path.read_text() == "another's"
        assert names(tmp_path) == ["f"]
    with files.atomic_path(path) as temporary:
        temporary.write_text("ours")
    assert path.read_text() == "ours"


def test_a_rename_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="f: No space left"):
        files.write_atomically(path, b"new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_failure_leaves_no_file_and_no_folder_of_its_own(tmp_path):
    (tmp_path / "there").mkdir()

    def failing(path):
        with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:  # noqa: PT012
            temporary.write_text("half")
            if "other" in str(path):
                (path.parent.parent / "theirs").touch()
            raise KeyboardInterrupt

    failing(tmp_path / "there" / "f")
    failing(tmp_path / "new" / "folder" / "f")
    failing(tmp_path / "there" / "new" / "f")
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []
    failing(tmp_path / "other" / "folder" / "f")
    assert names(tmp_path / "other") == ["theirs"]


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_temporary_files_of_ended_processes_are_removed_and_nothing_else(tmp_path, gone):
    kept = [".mine", ".keep.json", "last.safetensors", ".last.0123abcd.safetensors", f".f.{os.getppid()}-0123abcd.tmp"]
    dead = [
        f".last.{gone}-0123abcd.tmp.safetensors",
        f".run.{os.getpid()}-0123abcd.tmp.json",
        f"..f.{gone}-0a0b0c0d.tmp",
    ]
    for name in (*kept, *dead):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / dead[0]).touch()
    with files.atomic_path(tmp_path / "f") as temporary:
        files.remove_temporary_files(tmp_path)
        assert names(tmp_path) == sorted([*kept, "folder", temporary.name])
        assert names(tmp_path / "folder") == []


@pytest.mark.parametrize("name", ["f.flac", "f", ".f.wav", "a song, live.a b", "two\nlines.wav", "x" * 90 + ".mp3"])
def test_the_next_write_removes_what_a_killed_one_left(tmp_path, gone, name):
    with files.atomic_path(tmp_path / name) as temporary:
        left = temporary.name.replace(f".{os.getpid()}-", f".{gone}-")
    (tmp_path / left).write_text("half")
    (tmp_path / f".other.{gone}-0123abcd.tmp.wav").touch()
    files.write_atomically(tmp_path / name, b"whole")
    assert names(tmp_path) == sorted([name, f".other.{gone}-0123abcd.tmp.wav"])


def test_two_processes_that_write_the_same_file_leave_a_complete_one(tmp_path):
    program = """
import sys
from twinsep.utils.files import write_atomically
for _ in range(300):
    write_atomically("f", sys.argv[1].encode() * 100_000)
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, letter], cwd=tmp_path) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "f").exists():
            assert (tmp_path / "f").read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["f"]


def test_links_are_replaced_and_their_targets_stay(tmp_path):
    for name in ("real", "twin"):
        (tmp_path / name).write_text("old")
    (tmp_path / "soft").symlink_to("real")
    os.link(tmp_path / "twin", tmp_path / "hard")
    for name in ("soft", "hard"):
        files.write_atomically(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "real").read_text() == (tmp_path / "twin").read_text() == "old"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "f.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError), files.atomic_path(path) as temporary:
        temporary.write_text("half \udc80", "utf-8")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file where a folder is needed"):
        files.write_json(tmp_path / "file" / "x.json", 1)
    with pytest.raises(InputError, match=r"/file is a file where a folder is needed"):
        files.write_json(tmp_path / "file" / "folder" / "x.json", 1)
    (tmp_path / "full").symlink_to("/dev/full")
    for path in (tmp_path, tmp_path / "full", ""):
        with pytest.raises(InputError, match="it is a folder or a device; name a file instead"):
            files.write_json(path, 1)
    with pytest.raises(InputError, match="File name too long"), files.atomic_path(tmp_path / ("x" * 256)):
        pytest.fail("there was work for nothing")


def test_sentences_stay_on_one_line(tmp_path):
    odd = tmp_path / "a\nb\x1b[31m\u2028\udc80 é"
    odd.mkdir()
    with pytest.raises(InputError, match="is a folder") as caught:
        files.write_json(odd, 1)
    assert r"a\nb\x1b[31m\u2028\udc80 é:" in str(caught.value)
    (odd / "file").touch()
    with pytest.raises(InputError, match="where a folder is needed") as caught:
        files.write_json(odd / "file" / "x", 1)
    assert str(caught.value).isprintable()


def test_a_disk_that_takes_a_part_is_reported_as_full(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    try:
        with pytest.raises(InputError, match="x: File too large; free some space"):
            files.write_atomically(tmp_path / "new" / "x", bytes(70_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_a_full_device_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        files.write_json(tmp_path / "x.json", 1)
    assert list(tmp_path.iterdir()) == []
