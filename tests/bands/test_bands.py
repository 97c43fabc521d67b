"""Band tables: stored files, rules, and published band counts."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsep import bands
from twinsep.bands import __main__ as bands_main
from twinsep.errors import InputError

COUNTS = {
    "vocal72": 72,
    "reference68": 68,
    "uniform72": 72,
    "mel72": 72,
    "bsroformer62": 62,
    "bsrnn41": 41,
    "vocal36": 36,
    "vocal18": 18,
}
# Widths as published (bsrnn41), or from the reference's state dict, in which the first layer of band k has 4·w_k inputs
# (reference68).
BSRNN_EDGES = [
    0, 5, 9, 14, 19, 23, 28, 33, 37, 42, 46, 58, 70, 81, 93, 104, 116, 128, 139, 151, 163, 174, 186, 209, 232, 255,
    279, 302, 325, 348, 372, 418, 464, 511, 557, 604, 650, 697, 743, 836, 929, 1025,
]  # fmt: skip
REFERENCE_WIDTHS = [
    1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 4, 3, 4, 3, 4, 3, 4, 3, 3, 4, 3, 4, 3,
    4, 3, 4, 3, 4, 7, 8, 8, 8, 7, 8, 8, 8, 7, 8, 8, 8, 23, 23, 23, 24, 23, 23, 23, 24, 108, 109, 109, 109, 109,
    109,
]  # fmt: skip


def edges(table):
    return [*table[:, 0].tolist(), int(table[-1, 1])]


def test_names_list_the_eight_tables_with_the_default_first():
    assert set(bands.NAMES) == set(COUNTS)
    assert bands.NAMES[0] == "vocal72"


@pytest.mark.parametrize("name", COUNTS)
def test_stored_table_agrees_with_its_rule_and_count(name):
    stored = bands.table(name)
    assert stored.shape == (COUNTS[name], 2)
    assert stored.dtype == np.int64
    np.testing.assert_array_equal(stored, bands.read(name))
    np.testing.assert_array_equal(stored, bands.build(name, 2048, 44_100))


@pytest.mark.parametrize("name", COUNTS)
def test_every_bin_is_in_exactly_one_band(name):
    owners = np.zeros(1025, dtype=int)
    for lo, hi in bands.table(name):
        owners[lo:hi] += 1
    assert (owners[:1024] == 1).all()
    assert owners[1024] == (name != "reference68")


def test_written_files_equal_the_stored_ones(tmp_path):
    bands_main.write(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stored = {path.name: path.read_bytes() for path in bands.FOLDER.glob("*.csv")}
    assert written == stored
    assert written["vocal18.csv"].startswith(b"band,lo,hi\n0,0,5\n1,5,9\n")


def test_bsrnn_edges_are_those_published():
    assert edges(bands.table("bsrnn41")) == BSRNN_EDGES


def test_reference_widths_agree_with_its_checkpoints():
    assert np.diff(bands.table("reference68"))[:, 0].tolist() == REFERENCE_WIDTHS


def test_first_and_last_mel_edges():
    found = edges(bands.table("mel72"))
    assert found[:10] == [0, 2, 3, 5, 7, 9, 11, 13, 15, 18]
    assert found[-3:] == [927, 974, 1025]


def test_edges_of_vocal72():
    found = edges(bands.table("vocal72"))
    starts = accumulate((2, 8, 12, 24, 12, 8, 6), initial=0)
    assert [found[i] for i in starts] == [0, 3, 11, 23, 92, 185, 371, 1025]
    assert found[2:23] == list(range(3, 24))  # one bin each from 80 to 500 Hz


def test_uniform_widths_are_14_and_15():
    assert set(np.diff(bands.table("uniform72"))[:, 0].tolist()) == {14, 15}


def test_bsroformer_widths_are_those_published():
    expected = [2] * 24 + [4] * 12 + [12] * 8 + [24] * 8 + [48] * 8 + [128, 129]
    assert np.diff(bands.table("bsroformer62"))[:, 0].tolist() == expected


def test_merged_tables_keep_every_second_and_fourth_edge():
    fine = edges(bands.table("vocal72"))
    assert edges(bands.table("vocal36")) == fine[::2]
    assert edges(bands.table("vocal18")) == fine[::4]


@given(
    st.sampled_from(bands.NAMES), st.integers(1, 6000), st.sampled_from([8000, 16_000, 32_000, 44_100, 48_000, 96_000])
)
def test_on_any_grid_a_table_is_complete_or_rejected(name, half, rate):
    try:
        found = bands.table(name, n_fft=2 * half, sample_rate=rate)
    except InputError:
        return
    assert found[0, 0] == 0
    assert (found[1:, 0] == found[:-1, 1]).all()
    assert (found[:, 1] > found[:, 0]).all()
    end = rate // 2 * 2 * half // rate if name == "reference68" else half + 1
    assert found[-1, 1] == end


def test_tables_of_another_grid_have_the_same_frequencies():
    found = bands.table("vocal72", n_fft=4096)
    assert edges(found)[22] == 500 * 4096 // 44_100
    assert len(found) == 72


def test_impossible_grids_are_rejected_in_one_sentence():
    with pytest.raises(InputError, match="'vocal72' would have empty bands at n_fft 512 and 44100 Hz"):
        bands.table("vocal72", n_fft=512)
    with pytest.raises(InputError, match="'bsroformer62' lists 1025 bins, but n_fft 4096 has 2049"):
        bands.table("bsroformer62", n_fft=4096)
    with pytest.raises(InputError, match="even n_fft"):
        bands.table("mel72", n_fft=2047)


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown band table 'vocal71'; known: vocal72, reference68"):
        bands.table("vocal71")


def test_tables_are_cached_and_read_only():
    found = bands.table("mel72")
    assert found is bands.table("mel72")
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
