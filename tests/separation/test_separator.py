"""Separators of whole songs around models of a few lines: stems add up, and unseen bands are kept."""

import weakref

import numpy as np
import pytest

import twinsep
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.separation.overlap_add import ChunkGrid
from twinsep.separation.separator import Separator, complement

RATES = [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000]


def separator(model, *, targets=("instrumental",), residual=False, segment=20_000, overlap=0.25, **options):
    config = preset("tiny").override({"model": {"targets": list(targets), "residual": residual}})
    return Separator(model, config, ChunkGrid(segment, overlap), **options)


def identity(x):
    return x[:, None]


def noise(channels, samples, seed=0, dtype=np.float32):
    return (0.3 * np.random.default_rng(seed).standard_normal((channels, samples))).astype(dtype)


def filters(stems, seed=0):
    """A linear model: a random FIR filter and gain per stem and channel."""
    rng = np.random.default_rng(seed)
    kernels, gains = rng.standard_normal((stems, 9)), rng.standard_normal((stems, 2, 1))

    def model(x):
        filtered = [
            np.apply_along_axis(np.convolve, -1, x, kernel, "same") * gain
            for kernel, gain in zip(kernels, gains, strict=True)
        ]
        return np.stack(filtered, 1).astype(np.float32)

    return model


def whole(pieces):
    """(song, stems) of what ``stream`` yields."""
    songs, stems = zip(*pieces, strict=True)
    return np.concatenate(songs, 1), {stem: np.concatenate([s[stem] for s in stems], 1) for stem in stems[0]}


@pytest.mark.parametrize(
    ("targets", "residual", "stems"),
    [
        (("instrumental",), False, ("vocals", "instrumental")),
        (("instrumental",), True, ("vocals", "instrumental")),
        (("vocals",), False, ("vocals", "instrumental")),
        (("instrumental", "vocals"), False, ("vocals", "instrumental")),
        (("drums",), False, ("drums", "residual")),
        (("vocals", "drums"), False, ("vocals", "drums", "residual")),
        (("drums", "bass", "other", "vocals"), False, ("drums", "bass", "other", "vocals")),
        (("drums", "bass", "other", "vocals"), True, ("drums", "bass", "other", "vocals", "residual")),
    ],
)
def test_stems_are_the_targets_and_their_complement(targets, residual, stems):
    # Each target is the song times its number; a model with a residual stem gives that itself.
    numbers = list(range(2, 2 + len(targets)))
    gains = np.float32(numbers + [1 - sum(numbers)] * residual)
    found = separator(lambda x: x[:, None] * gains[:, None, None], targets=targets, residual=residual)
    x = noise(2, 500)
    y = found(x, 44_100)
    assert found.stems == tuple(y) == stems
    given = dict(zip(targets, gains, strict=False))
    for stem in stems[:-1]:
        gain = given.get(stem, 1 - given.get("instrumental", 0))
        np.testing.assert_allclose(y[stem], gain * x, atol=1e-6)
    np.testing.assert_allclose(sum(y.values()), x, atol=1e-6)


def test_names_and_complements():
    karaoke, band = separator(identity), separator(identity, targets=("drums", "bass", "other", "vocals"))
    assert karaoke.stems == ("vocals", "instrumental")
    assert karaoke.names("instrumental") == ("instrumental", "vocals")
    assert band.names("vocals") == ("vocals", "instrumental")
    assert band.names("instrumental") == ("instrumental", "vocals")
    assert band.names("drums") == ("drums", "no_drums")
    with pytest.raises(InputError, match="no stem 'drums': choose from vocals, instrumental"):
        karaoke.names("drums")
    x = noise(2, 10)
    stems = {"drums": 0.25 * x, "vocals": 0.5 * x}
    np.testing.assert_array_equal(complement(x, stems, "drums"), 0.25 * x)
    np.testing.assert_array_equal(complement(x, stems, "no_drums"), x - 0.25 * x)
    np.testing.assert_array_equal(complement(x, stems, "instrumental"), 0.5 * x)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_a_model_that_removes_nothing_returns_the_song(rate, channels):
    x = noise(channels, rate // 5 + 7)
    song, stems = whole(separator(identity).stream(np.split(x, [1, 1000], 1), x.shape[1], rate))
    np.testing.assert_array_equal(song, x)
    assert stems["instrumental"].dtype == np.float32
    np.testing.assert_allclose(stems["instrumental"], x, rtol=0, atol=3e-7)
    np.testing.assert_allclose(stems["vocals"], 0, atol=3e-7)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("targets", [("instrumental",), ("drums", "vocals")])
def test_stems_add_up_to_the_song(rate, targets):
    x = noise(2, rate // 10, seed=rate)
    y = separator(filters(len(targets)), targets=targets, segment=3000)(x, rate)
    assert max(np.abs(y[stem]).max() for stem in y) > 0.5
    assert np.abs(sum(y.values()) - x).max() <= 1e-6


def test_channels_keep_their_order():
    # What becomes of a pair does not depend on the channels beside it, and a single channel is a pair of equal ones.
    x, found = noise(5, 3000), separator(filters(2), targets=("drums", "bass"))

    def bass(*channels):
        return whole(found.stream([x[list(channels)]], 3000, 44_100))[1]["bass"]

    np.testing.assert_array_equal(bass(0, 1, 2, 3), np.concatenate([bass(0, 1), bass(2, 3)]))
    np.testing.assert_array_equal(bass(0, 1, 4), np.concatenate([bass(0, 1), bass(4)]))
    np.testing.assert_allclose(bass(4), bass(4, 4).mean(0, keepdims=True), rtol=1e-5, atol=1e-6)


def test_block_lengths_change_nothing():
    x, found = noise(2, 9000), separator(filters(1), segment=2000)
    at_once = found(x, 48_000)["vocals"]
    pieces = np.split(x, [1, 2, 700, 701, 5000, 8999], 1)
    np.testing.assert_allclose(whole(found.stream(pieces, 9000, 48_000))[1]["vocals"], at_once, atol=1e-6)


def test_sound_above_the_models_nyquist_frequency_is_kept():
    t = np.arange(96_000) / 96_000
    high = 0.5 * np.sin(2 * np.pi * 30_000 * t)
    x = np.stack([high, high]).astype(np.float32)
    y = separator(lambda x: 0 * identity(x))(x, 96_000)  # all that the model hears is taken for the voice
    middle = slice(5000, -5000)
    np.testing.assert_allclose(y["instrumental"][:, middle], x[:, middle], atol=1e-5)
    low = np.stack([0.5 * np.sin(2 * np.pi * 3000 * t)] * 2).astype(np.float32)
    np.testing.assert_allclose(
        separator(lambda x: 0 * identity(x))(low, 96_000)["instrumental"][:, middle], 0, atol=1e-5
    )


def test_augmented_averages_over_swaps_and_inversions():
    calls = []

    def uneven(x):  # louder on the left, and squared
        calls.append(len(x))
        return (x * np.float32([[1], [0.5]]) + x * x)[:, None]

    x = noise(2, 900)
    y = separator(uneven, segment=2000, augmented=True)(x, 44_100)
    assert len(calls) == 4
    np.testing.assert_allclose(y["instrumental"], 0.75 * x, atol=1e-6)  # even parts cancel, channels are averaged

    def equivariant(x):
        return x[:, None] * np.tanh(np.abs(x).sum(1))[:, None, None]

    plain, averaged = (separator(equivariant, augmented=a)(x, 44_100)["vocals"] for a in (False, True))
    np.testing.assert_allclose(averaged, plain, atol=1e-6)


def test_estimates_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite: use another checkpoint"):
        separator(lambda x: np.full_like(identity(x), np.nan))(noise(2, 100), 44_100)


@pytest.mark.parametrize("rate", RATES)
def test_a_song_of_one_sample(rate):
    y = separator(identity)(np.full((1, 1), 0.5, np.float32), rate)
    assert y["instrumental"].shape == (1, 1)
    assert y["instrumental"][0, 0] == pytest.approx(0.5, abs=1e-6)


def test_progress_is_reported():
    told = []
    separator(identity, segment=400)(noise(2, 3000), 44_100, on_progress=lambda *p: told.append(p))
    assert told[-1] == (len(told), len(told))
    assert len(told) > 5


def test_a_callback_cancels_a_separation_and_the_separator_goes_on():
    model, song, told = separator(identity, segment=400), noise(2, 3000), []

    def cancel(*progress):
        told.append(progress)
        if len(told) == 2:
            raise twinsep.Cancelled("that is enough")

    with pytest.raises(twinsep.Cancelled, match="that is enough"):
        model(song, 48_000, on_progress=cancel)
    assert len(told) == 2
    np.testing.assert_allclose(sum(model(song, 48_000).values()), song, atol=1e-6)


# ---------------------------------------------------------------------------- arrays


def arrays():
    import jax.numpy as jnp
    import torch

    for dtype in (np.float16, np.float32, np.float64):
        yield noise(2, 3000, dtype=dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        yield torch.from_numpy(noise(2, 3000)).to(dtype)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        yield jnp.asarray(noise(2, 3000), dtype)


@pytest.mark.parametrize("waveform", list(arrays()), ids=lambda w: f"{type(w).__module__.split('.')[0]}-{w.dtype}")
def test_outputs_have_the_library_device_and_dtype_of_the_input(waveform):
    y = separator(filters(1), segment=1000)(waveform, 44_100)
    exact = separator(filters(1), segment=1000)(noise(2, 3000), 44_100)
    for stem, found in y.items():
        assert (type(found), found.dtype, found.device) == (type(waveform), waveform.dtype, waveform.device)
        bits = 7 if "bfloat16" in str(found.dtype) else 10 if "float16" in str(found.dtype) else 20
        error = np.abs(np.asarray(found.tolist()) - exact[stem]).max()
        assert error <= 2.0**-bits * 8 * np.abs(exact[stem]).max()


def test_no_gradient_passes():
    import torch

    y = separator(identity)(torch.zeros(1, 100, requires_grad=True), 44_100)["vocals"]
    assert not y.requires_grad
    assert y.shape == (1, 100)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros(100, np.float32), 44_100, r"shape \(100,\)"),
        (np.zeros((3, 100), np.float32), 44_100, r"shape \(3, 100\).*1 or 2 channels"),
        (np.zeros((0, 100), np.float32), 44_100, r"shape \(0, 100\)"),
        (np.zeros((2, 0), np.float32), 44_100, r"shape \(2, 0\)"),
        (np.zeros((1, 2, 100), np.float32), 44_100, r"shape \(1, 2, 100\)"),
        (np.zeros((2, 100), np.int16), 44_100, "a waveform of dtype int16"),
        (np.zeros((2, 100), complex), 44_100, "a waveform of dtype complex128"),
        (np.full((2, 100), np.nan), 44_100, "NaN or infinite"),
        (np.full((2, 100), np.inf, np.float32), 44_100, "NaN or infinite"),
        (np.full((2, 100), 1e300), 44_100, "NaN or infinite"),
        ([[0.0, 1.0]], 44_100, "a list is no waveform"),
        (np.zeros((2, 100), np.float32), 0, "a sample rate of 0 Hz"),
        (np.zeros((2, 100), np.float32), -44_100, "a sample rate of -44100 Hz"),
        (np.zeros((2, 100), np.float32), 44_100.5, "a sample rate of 44100.5 Hz"),
        (np.zeros((2, 100), np.float32), float("nan"), "a sample rate of nan Hz"),
    ],
)
def test_bad_waveforms_are_refused(waveform, rate, message):
    with pytest.raises(InputError, match=message):
        separator(identity)(waveform, rate)


def test_a_separator_of_a_function_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match="no weights to save"):
        separator(identity).save_pretrained(tmp_path / "model")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [8000, 44_100, 96_000])
def test_blocks_are_released_once_read(rate):
    """Even at a low rate, where a block lasts many seconds."""
    alive = []

    def blocks():
        for _ in range(80):
            block = np.zeros((2, 10_000), np.float32)
            alive.append(weakref.ref(block))
            yield block
            del block

    most = 0
    for _ in separator(identity, segment=5000).stream(blocks(), 800_000, rate):
        most = max(most, sum(reference() is not None for reference in alive))
    assert 1 < most <= 12
