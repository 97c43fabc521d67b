"""Atomic writes and checkpoints."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from twinsep import checkpoint, files
from twinsep.checkpoint import Checkpoint
from twinsep.config import preset
from twinsep.errors import InputError


def example():
    rng = np.random.default_rng(0)
    tensors = {f"{p}/layer.weight": rng.standard_normal((3, 5)).astype(np.float32) for p in ("model", "ema", "adam_m")}
    return Checkpoint(preset("tiny"), tensors, 7, {"next_example": 14}, {"progression": {"step": 7}})


def test_round_trip_is_exact(tmp_path):
    written = example()
    checkpoint.write(tmp_path / "c.safetensors", written)
    found = checkpoint.read(tmp_path / "c.safetensors")
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
    checkpoint.write(tmp_path / "c.safetensors", example())
    found = checkpoint.read(tmp_path / "c.safetensors", prefixes=("model/",))
    assert list(found.tensors) == ["model/layer.weight"]
    assert list(found.weights("ema")) == ["layer.weight"]  # no average: the weights themselves


def test_the_same_checkpoint_is_the_same_bytes(tmp_path):
    for name in "ab":
        checkpoint.write(tmp_path / name, example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_checkpoints_are_refused_in_a_sentence(tmp_path):
    good = tmp_path / "good.safetensors"
    checkpoint.write(good, example())
    cases = {"missing": "does not exist", "folder": "is a folder"}
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
    fields = {"format": checkpoint.FORMAT, "config": {}, "step": 0, "data": {}, "provenance": {}, "digests": {}}
    for name, changes, sentence in [
        ("format", {"format": 99}, "format 99, of which this version knows 1 alone"),
        ("config", {}, "configuration: model"),
    ]:
        text = json.dumps(fields | changes)
        metadata = {"twinsep": json.dumps({"digest": checkpoint._digest(text.encode()), "values": text})}
        save_file({}, tmp_path / name, metadata)
        cases[name] = sentence
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "damaged", {"twinsep": "{"})
    cases["damaged"] = "metadata is damaged"
    for name, sentence in cases.items():
        with pytest.raises(InputError, match=sentence) as caught:
            checkpoint.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("prefixes", [None, ("model/",)])
def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path, prefixes):
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, example())
    whole = path.read_bytes()
    step = re.search(rb"step\W+(\d)", whole).start(1)
    size = int.from_bytes(whole[:8], "little")
    weight = json.loads(whole[8 : 8 + size])["model/layer.weight"]["data_offsets"][0] + 8 + size
    for place in (step, weight):
        broken = bytearray(whole)
        broken[place] ^= 1
        path.write_bytes(bytes(broken))
        with pytest.raises(InputError, match="damaged since it was written"):
            checkpoint.read(path, prefixes=prefixes)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".last.0123abcd.safetensors", ".run.0123abcd.json", ".mine", ".keep.json", "last.safetensors"):
        (tmp_path / name).write_text("")
    files.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine", ".keep.json", "last.safetensors"}


def test_names_and_shapes_must_fit():
    shapes = {"a": (2,), "b": (3, 4)}
    good = {"a": np.zeros(2), "b": np.zeros((3, 4))}
    checkpoint.check_names(good, shapes, "x")
    for bad, sentence in [
        ({"a": np.zeros(2)}, "no weight 'b'"),
        (good | {"a": np.zeros(3)}, r"'a' has shape \(3,\), the model needs \(2,\)"),
        (good | {"c": np.zeros(3)}, "'c' has no place"),
    ]:
        with pytest.raises(InputError, match=sentence):
            checkpoint.check_names(bad, shapes, "x")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "f.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError), files.replacing(path) as temporary:
        temporary.write_text("half \udc80", "utf-8")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file where a folder is needed"):
        files.write_json(tmp_path / "file" / "x.json", 1)
    with pytest.raises(InputError, match="is a folder"):
        files.write_json(tmp_path, 1)


def test_a_full_device_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        files.write_json(tmp_path / "x.json", 1)
    assert list(tmp_path.iterdir()) == []
