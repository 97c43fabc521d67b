"""The catalogue of recordings: splits, speakers, and the sentence for a faulty one."""

import copy
from pathlib import Path

import pytest
import yaml
from helpers.recordings import CATALOGUE, FILES

from twinsep.data.recordings.catalogue import Package, read_catalogue, recordings
from twinsep.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Empty files: the catalogue reads names alone."""
    for path in (*FILES, "talk/readme.txt", "talk/nobody.wav", "band/music/cover.png"):
        (tmp_path / "all" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / path).touch()
    return tmp_path / "all"


def catalogue(tmp_path, change=lambda _: None):
    values = copy.deepcopy(CATALOGUE)
    change(values)
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump(values))
    return read_catalogue(path)


def test_every_recording_has_a_split_and_every_voice_a_speaker(root, tmp_path):
    def change(values):
        values["band"]["drop"] = ["*/b.ogg"]

    found = {each.path: each for each in recordings(catalogue(tmp_path, change), root)}
    assert {path for path in FILES} - set(found) == {"band/music/b.ogg"}
    assert set(found) - set(FILES) == {"talk/nobody.wav"}
    assert {path: each.split for path, each in found.items() if each.package == "band"} == {
        "band/music/a.ogg": "train",
        "band/music/valid.ogg": "valid",
        "band/music/held.ogg": "test",
    }
    assert found["talk/ann/0.wav"].speaker == "talk/ann"
    assert found["talk/nobody.wav"].speaker == "talk/cast"
    assert found["solo/singer_1.wav"].sings
    assert not found["talk/ann/0.wav"].sings
    splits = {}
    for each in found.values():
        splits.setdefault(each.speaker, set()).add(each.split)
    assert all(len(of) == 1 for speaker, of in splits.items() if speaker)


@pytest.mark.parametrize(
    ("package", "change", "sentence"),
    [
        ("band", {"sha256": "abc"}, "band: sha256 'abc' is not 64 hexadecimal digits"),
        ("band", {"genre": ""}, "instrumentals a genre"),
        ("talk", {"genre": "rock"}, "voices need a speaker and no genre"),
        ("talk", {"colour": "red"}, "talk.colour"),
        ("talk", {"role": "noises"}, "talk.role"),
    ],
)
def test_a_faulty_catalogue_is_refused_by_name(tmp_path, package, change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        catalogue(tmp_path, lambda values: values[package].update(change))
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_catalogue_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_catalogue(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        read_catalogue(tmp_path / "broken.yaml")


def test_the_catalogue_of_the_release_holds_everything_that_a_release_needs():
    packages = read_catalogue(Path(__file__).parents[3] / "ablations" / "release" / "recordings.yaml")
    assert len({package.sha256 for package in packages.values()}) == len(packages)
    for split in ("valid", "test"):
        for role in ("instrumentals", "voices"):
            assert any(getattr(p, split) for p in packages.values() if p.role == role)
    assert packages["fretsonfire-songs-sectoid"].split("a/sectoid/Feelings/song.ogg") == "test"
    assert packages["hedgewars-data"].split("a/Sounds/voices/Singer/Amazing.ogg") == "test"
    assert packages["basic-pitch"].sings
    assert packages["marsshooter-data"].sung
    assert len(packages["ktuberling-data"].test) == 2


def test_patterns_apply_in_order():
    package = Package(**{**CATALOGUE["band"], "drop": ("*/held.ogg",)})
    assert [package.split(f"music/{name}.ogg") for name in ("held", "valid", "a")] == [None, "valid", "train"]
    assert package.split("sounds/a.ogg") is None
