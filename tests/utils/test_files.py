"""Atomic writes and checkpoints."""

import errno
import json
import os
import re
import resource
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


def test_prefixes_and_weights(tmp_path):
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
def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path, prefixes):
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


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".last.0123abcd.safetensors", ".run.0123abcd.json", ".mine", ".keep.json", "last.safetensors"):
        (tmp_path / name).write_text("")
    files.remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine", ".keep.json", "last.safetensors"}


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


@pytest.fixture(params=["nameless", "another system", "another file system", "no links either"])
def way(request, monkeypatch):
    """The ways to write a file: the first where there are files without a name, the others elsewhere."""
    opened = os.open

    def refusing(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(path, flags, *rest, **more)

    def unlinkable(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "another system":
        monkeypatch.delattr(os, "O_TMPFILE")
    if request.param in ("another file system", "no links either"):
        monkeypatch.setattr(os, "open", refusing)
    if request.param == "no links either":
        monkeypatch.setattr(os, "link", unlinkable)
    return request.param


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_has_its_name_when_it_is_whole(tmp_path, way, overwrite):
    path = tmp_path / "new" / "folder" / ("x" * 246 + ".wav")
    usual = tmp_path / "usual"
    usual.touch()
    with files.atomic_file(path, overwrite=overwrite) as file:
        file.write(b"0123456789")
        assert not path.exists()
        assert len(names(path.parent)) == (way != "nameless")
        file.seek(2)
        assert file.read(3) == b"234"
        file.write(b"__")
        file.truncate(9)
    assert path.read_bytes() == b"01234__78"
    assert path.stat().st_mode == usual.stat().st_mode
    assert names(path.parent) == [path.name]
    files.write_atomically(path, b"anew")
    assert path.read_bytes() == b"anew"
    assert names(path.parent) == [path.name]


@pytest.mark.usefixtures("way")
def test_what_stands_there_is_refused_or_replaced(tmp_path):
    path = tmp_path / "f"
    for there_before in (True, False):
        path.unlink(missing_ok=True)
        if there_before:
            path.write_text("another's")
        sentence = "f exists; give --overwrite to replace it, or another --out$"
        with pytest.raises(InputError, match=sentence), files.atomic_file(path, overwrite=False) as file:  # noqa: PT012
            assert not there_before
            file.write(b"ours")
            path.write_text("another's")  # meanwhile
        assert path.read_text() == "another's"
        assert names(tmp_path) == ["f"]
    with files.atomic_file(path) as file:
        file.write(b"ours")
    assert path.read_text() == "ours"


def test_a_name_that_cannot_be_given(tmp_path, monkeypatch, way):
    path = tmp_path / "f"

    def full(*_):
        assert path.exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for old in ["old"] + [""] * (way == "no links either"):  # elsewhere nothing is renamed where there is no old file
        if old:
            path.write_text(old)
        with pytest.raises(InputError, match="f: No space left"), files.atomic_file(path, overwrite=bool(old)) as file:
            file.write(b"new")
        assert [p.read_text() for p in tmp_path.iterdir()] == [old] * bool(old)
        path.unlink(missing_ok=True)


@pytest.mark.usefixtures("way")
def test_a_failure_leaves_no_file_and_no_folder_of_its_own(tmp_path):
    (tmp_path / "there").mkdir()

    def failing(path):
        with pytest.raises(KeyboardInterrupt), files.atomic_file(path) as file:  # noqa: PT012
            file.write(b"half")
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


def test_a_folder_that_another_process_took_for_empty(tmp_path):
    with files.atomic_file(tmp_path / "new" / "f") as file:
        (tmp_path / "new").rmdir()
        file.write(b"whole")
    assert (tmp_path / "new" / "f").read_bytes() == b"whole"


def test_a_temporary_file_is_known_as_such(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE")
    for name in ("f.flac", "f", ".f.wav", "a song, live.a b"):
        with pytest.raises(InputError, match="No such file"), files.atomic_file(tmp_path / name):  # noqa: PT012
            files.remove_temporary_files(tmp_path)
            assert names(tmp_path) == []


def test_links_are_replaced_and_what_they_name_stays(tmp_path):
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


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file where a folder is needed"):
        files.write_json(tmp_path / "file" / "x.json", 1)
    with pytest.raises(InputError, match=r"/file is a file where a folder is needed"):
        files.write_json(tmp_path / "file" / "folder" / "x.json", 1)
    (tmp_path / "full").symlink_to("/dev/full")
    for path in (tmp_path, tmp_path / "full", ""):
        with pytest.raises(InputError, match="it is a folder or a device; give the name of a file"):
            files.write_json(path, 1)
    with pytest.raises(InputError, match="File name too long"), files.atomic_file(tmp_path / ("x" * 256)):
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


@pytest.mark.usefixtures("way")
def test_a_disk_that_takes_a_part_is_full(tmp_path):
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
