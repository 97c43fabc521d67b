"""One song of real recordings from one seed: an instrumental, a voice over it, and their production."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from twinsep.data.recordings import production
from twinsep.data.recordings.material import Material, draw_passage, draw_phrases, draw_speaker, read_stereo
from twinsep.data.recordings.production import CODECS, Sound
from twinsep.data.recordings.singing import Key, draw_manner, find_key, set_to_music, sing
from twinsep.data.recordings.speech import analyse
from twinsep.data.synth import effects
from twinsep.data.synth import song as generated
from twinsep.data.synth.composition import compose
from twinsep.data.synth.effects import SAMPLE_RATE, gain
from twinsep.data.synth.vocals import vocals as synthetic_vocals
from twinsep.errors import InputError

#: Raised whenever a seed would give another song.
VERSION = 1
Kind = Literal["sung", "spoken", "singer", "espeak", "generated", "instrumental", "voice"]
#: ``sung``: speech sung over a real instrumental; ``spoken``: rapped or spoken; ``singer``: a recorded singer;
#: ``espeak``: a synthetic voice; ``generated``: a generated song; ``instrumental``: no voice; ``voice``: nothing else.
KINDS: tuple[Kind, ...] = get_args(Kind)
_Range = tuple[float, float]
_Probability = Annotated[float, Field(ge=0, le=1)]
#: Voice (samples, 2) in a key, and what was drawn.
_Voice = Callable[[np.random.Generator, Material, Key, int], tuple[Sound, dict[str, Any]]]
_SILENT = 1e-6  # root mean square
_TRIES = 8
#: Probability of added overtones on a recorded voice, many of which end at 8 to 11 kHz.
_EXCITED = 0.5


@validated(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)
class Recipe:
    """How songs are made: their length, ranges that are drawn from uniformly, and probabilities."""

    seconds: Annotated[float, Field(ge=3, le=600)]
    voice_db: _Range  # level of the voice over the instrumental
    side_db: _Range  # change of the side of each stem
    spread: _Probability  # a delayed copy of the mid in the side, for each stem
    spread_db: _Range
    low_pass: _Probability  # for each stem alone
    low_pass_hz: _Range
    codec: _Probability  # for each stem alone
    master: _Probability
    pause: _Probability  # a passage without voice
    a_cappella: _Probability  # a passage without instruments
    passage_seconds: _Range  # of either


@dataclass(frozen=True)
class StemSong:
    """A song in two stems, int16 (samples, 2) at 44.1 kHz, whose sum does not clip; ``info`` holds what was drawn."""

    vocals: np.ndarray
    instrumental: np.ndarray
    info: dict[str, Any]


def make_song(kind: Kind, seed: tuple[int, ...], material: Material, recipe: Recipe) -> StemSong:
    """Make the song of a seed; it is the same to the bit on one machine.

    Raises :class:`InputError` for material that does not suffice, and a missing package.
    """
    rng = np.random.default_rng([VERSION, KINDS.index(kind), *seed])
    samples = round(recipe.seconds * SAMPLE_RATE)
    info: dict[str, Any] = {"kind": kind, "seed": list(seed)}
    voice: np.ndarray = np.zeros((samples, 2), np.float32)
    instrumental = voice.copy()
    key = Key(int(rng.integers(12)), compose(rng, recipe.seconds).scale)
    if kind == "generated":
        made = generated.song(int(rng.integers(2**31)), recipe.seconds)
        voice = made.stems["vocals"].astype(np.float32) / 32768
        instrumental = (made.mixture.astype(np.float32) - made.stems["vocals"]) / 32768
        info |= {"genre": "generated", "voice": made.info["voices"]}
    elif kind != "voice":
        instrumental, source, start = draw_passage(rng, material, recipe.seconds)
        missing = max(0, samples - len(instrumental))
        instrumental = np.pad(instrumental[:samples], ((0, missing), (0, 0))).astype(np.float32)
        key = find_key(instrumental)
        info |= {"instrumental": source.path, "start": round(start, 3), "genre": source.genre}
    if kind in _VOICES:
        voice, said = _sounding(rng, _VOICES[kind], material, key, samples)
        info |= said
    vocals, vocals_info = _colour(rng, voice, recipe)
    instrumental, instrumental_info = _colour(rng, instrumental, recipe)
    stems, balance = _balance(rng, {"vocals": vocals, "instrumental": instrumental}, recipe)
    parts = {"vocals": vocals_info, "instrumental": instrumental_info}
    return _quantise(rng, stems, info | {"production": parts, **balance})


# ---------------------------------------------------------------------------- voices


def _sounding(
    rng: np.random.Generator, sing: _Voice, material: Material, key: Key, samples: int
) -> tuple[Sound, dict[str, Any]]:
    """Draw a voice, and another one if it is silent: some recordings of speakers are noises without a syllable."""
    for _ in range(_TRIES):
        voice, info = sing(rng, material, key, samples)
        if effects.rms(voice) > _SILENT:
            return voice, info
    who = info.get("speaker", "a synthesiser")
    raise InputError(f"{_TRIES} voices in a row are silent, the last one of {who}: drop such speakers")


def _sung(rng: np.random.Generator, material: Material, key: Key, samples: int) -> tuple[Sound, dict[str, Any]]:
    """Phrases of a speaker, sung in the key one after the other, with rests of a quarter of a beat to two beats."""
    seconds, beat = samples / SAMPLE_RATE, 60 / rng.uniform(70, 140)
    speaker = draw_speaker(rng, material.voices)
    phrases = draw_phrases(rng, material.root, material.voices[speaker], 0.5 * seconds)
    formants, doubled = float(rng.uniform(0.93, 1.1)), bool(rng.random() < 0.5)
    lead, doubles = np.zeros(samples), [np.zeros(samples), np.zeros(samples)] if doubled else []
    cursor, centre = float(rng.uniform(0, 1.5)), rng.uniform(2, 9)  # people sing higher than they speak
    used: list[str] = []
    for files, phrase in phrases:
        if cursor > seconds - 1:
            break
        speech = analyse(phrase)
        if speech is None:
            continue
        if not used:
            centre += speech.median_key
        syllables = set_to_music(rng, speech, key, beat, centre)
        sound, _ = sing(rng, speech, syllables, draw_manner(rng, formants))
        _add(lead, sound, cursor)
        for side, double in zip((-1, 1), doubles, strict=False):
            manner = draw_manner(rng, formants * (1 + 0.01 * side), side * float(rng.uniform(0.04, 0.12)))
            _add(double, sing(rng, speech, syllables, manner)[0], cursor)
        cursor += syllables[-1].start + syllables[-1].seconds + beat * float(rng.choice([0.25, 0.5, 1, 2]))
        used += files
    return _produced(rng, lead, doubles, {"speaker": speaker, "speech": used})


def _spoken(rng: np.random.Generator, material: Material, _: Key, samples: int) -> tuple[Sound, dict[str, Any]]:
    """Phrases of a speaker as they were said, each from a beat on."""
    seconds, beat = samples / SAMPLE_RATE, 60 / rng.uniform(70, 140)
    speaker = draw_speaker(rng, material.voices)
    lead, cursor = np.zeros(samples), float(rng.uniform(0, 1))
    used: list[str] = []
    for files, phrase in draw_phrases(rng, material.root, material.voices[speaker], seconds):
        if cursor > seconds - 1:
            break
        _add(lead, phrase, cursor)
        cursor += len(phrase) / SAMPLE_RATE + rng.uniform(0.02, 0.5)
        cursor = float(np.ceil(cursor / beat) * beat) if rng.random() < 0.5 else cursor
        used += files
    late = np.pad(lead, (round(0.01 * SAMPLE_RATE), 0))[:samples]
    return _produced(rng, lead, [late, lead] if rng.random() < 0.2 else [], {"speaker": speaker, "speech": used})


def _singer(rng: np.random.Generator, material: Material, _: Key, samples: int) -> tuple[Sound, dict[str, Any]]:
    """A passage of a recorded singer."""
    speaker = draw_speaker(rng, material.singers)
    path = str(rng.choice(material.singers[speaker]))
    whole = read_stereo(material.root / path).mean(1)
    start = int(rng.integers(max(1, len(whole) - samples + 1)))
    sung = whole[start : start + samples]
    lead = np.pad(sung, (0, samples - len(sung)))
    return _produced(rng, lead, [], {"speaker": speaker, "speech": [path], "speech_start": start / SAMPLE_RATE})


def _espeak(rng: np.random.Generator, _: Material, key: Key, samples: int) -> tuple[Sound, dict[str, Any]]:
    """The vocals of a generated song in the key, with the effects of such a song."""
    plan = replace(compose(rng, samples / SAMPLE_RATE), key=key.tonic, scale=key.scale)
    voice, info = synthetic_vocals(rng, plan, samples)
    return voice, {"voice": info["voices"]}


def _alone(rng: np.random.Generator, material: Material, key: Key, samples: int) -> tuple[Sound, dict[str, Any]]:
    """Sung or spoken."""
    return (_sung if rng.random() < 0.7 else _spoken)(rng, material, key, samples)


_VOICES: dict[str, _Voice] = {
    "sung": _sung,
    "spoken": _spoken,
    "singer": _singer,
    "espeak": _espeak,
    "voice": _alone,
}


def _produced(
    rng: np.random.Generator, lead: np.ndarray, doubles: list[np.ndarray], info: dict[str, Any]
) -> tuple[Sound, dict[str, Any]]:
    if effects.rms(lead) < _SILENT:
        return np.zeros((len(lead), 2), np.float32), info
    voice, used = production.vocal_chain(rng, lead.astype(np.float32), [x.astype(np.float32) for x in doubles])
    if rng.random() < _EXCITED:
        used.append("exciter")
        voice = effects.exciter(voice, rng.uniform(3000, 5000), rng.uniform(0.1, 0.6))
    return voice, info | {"effects": used}


def _add(track: np.ndarray, sound: np.ndarray, seconds: float) -> None:
    """Add mono ``sound`` to ``track`` from ``seconds`` on, up to its end."""
    start = round(seconds * SAMPLE_RATE)
    end = min(len(track), start + len(sound))
    track[start:end] += sound[: max(0, end - start)]


# ---------------------------------------------------------------------------- production


def _colour(rng: np.random.Generator, x: Sound, recipe: Recipe) -> tuple[Sound, dict[str, Any]]:
    """Equaliser, width, low-pass and codec of one stem, and what was drawn; a silent one stays silent."""
    side_db, is_spread = round(float(rng.uniform(*recipe.side_db)), 2), rng.random() < recipe.spread
    late, spread_db = rng.uniform(0.002, 0.025), round(float(rng.uniform(*recipe.spread_db)), 2)
    cut, hertz = rng.random() < recipe.low_pass, round(float(rng.uniform(*recipe.low_pass_hz)))
    encoded, codec, share = rng.random() < recipe.codec, str(rng.choice(list(CODECS))), rng.random()
    info: dict[str, Any] = {"side_db": side_db}
    if effects.rms(x) < _SILENT:
        return np.zeros_like(x), {}
    x = production.set_width(production.equalise(rng, x, spread=1.5), side_db)
    if is_spread:
        x, info["spread_db"] = production.spread(x, late, spread_db), spread_db
    if cut:
        x, info["low_pass_hz"] = effects.brickwall(x, hertz), hertz
    if encoded:
        least, most = CODECS[codec][3]
        info["codec"] = [codec, round(least + share * (most - least), 2)]
        x = production.lossy(x, *info["codec"])
    return x, info


def _balance(
    rng: np.random.Generator, stems: dict[str, Sound], recipe: Recipe
) -> tuple[dict[str, Sound], dict[str, Any]]:
    """Levels of the stems, passages without one of them, mastering; and what was drawn."""
    level, info = round(float(rng.uniform(*recipe.voice_db)), 2), dict[str, Any]()
    voice, instrumental = stems["vocals"], stems["instrumental"]
    sounding = effects.rms(voice) > _SILENT and effects.rms(instrumental) > _SILENT
    if sounding:
        factor = effects.active_rms(instrumental) * gain(level) / effects.active_rms(voice)
        stems = {"vocals": voice * np.float32(factor), "instrumental": instrumental}
        info["voice_db"] = level
    for stem, name, probability in (
        ("vocals", "pause", recipe.pause),
        ("instrumental", "a_cappella", recipe.a_cappella),
    ):
        wanted, seconds, start = rng.random() < probability, rng.uniform(*recipe.passage_seconds), rng.random()
        length = min(round(seconds * SAMPLE_RATE), len(voice) // 2)
        first = round(start * (len(voice) - length))
        if wanted and sounding:
            stems[stem] = production.fade_out(stems[stem], first, first + length)
            info[name] = [round(n / SAMPLE_RATE, 2) for n in (first, first + length)]
    mastered = rng.random() < recipe.master
    if mastered:
        stems = production.master(rng, stems)
    return stems, info | {"mastered": bool(mastered)}


def _quantise(rng: np.random.Generator, stems: dict[str, Sound], info: dict[str, Any]) -> StemSong:
    """Scale both stems together to a peak of 0.5 to 0.96 and round them to 16 bits."""
    song = stems["vocals"] + stems["instrumental"]
    loudest = max(float(np.abs(x).max()) for x in (*stems.values(), song))
    scale = float(rng.uniform(0.5, generated.PEAK)) * 32767 / max(loudest, 1e-9)
    whole = {name: np.round(x * scale).astype(np.int16) for name, x in stems.items()}
    return StemSong(whole["vocals"], whole["instrumental"], info)
