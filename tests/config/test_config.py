"""Configuration, presets, schedule, initial draws."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsep.config import PRESETS, BandSplitConfig, FlatConfig, TrainingConfig, UNetConfig, from_dict, mixers, preset
from twinsep.errors import InputError
from twinsep.model import initializers
from twinsep.training import schedule


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_json_round_trip(name):
    chosen = preset(name)
    assert from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_reference_presets_have_the_references_faults_and_no_other_does():
    for name, chosen in PRESETS.items():
        if not isinstance(chosen.model, BandSplitConfig):
            continue
        faulty = name.startswith("reference")
        assert (chosen.model.bands == "reference68") == faulty
        assert (getattr(chosen.model, "memory_alignment", "aligned") == "reference") == faulty
        assert ("log_magnitude" in chosen.loss.weights) == faulty
        published = faulty or (isinstance(chosen.model, FlatConfig) and not name.endswith("-tiny"))
        assert (chosen.model.features == "complex") == (chosen.model.init == "default") == published


def test_default_loss_is_the_papers_mix():
    assert preset("paper").loss.weights == {"magnitude": 0.25, "band": 0.5, "si_sdr": 2.5}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"network": "rnn"}}, "model.network: 'rnn' is not one of unet, flat, spectrogram-unet, package"),
        ({"model": {"network": "flat"}}, "model.n_layers: missing; set it to a whole number of at least 1"),
        ({"model": {"n_layers": 2}}, "model.n_layers: no such field; known: network, sample_rate, n_fft"),
        (
            {"model": {"mixer": {"kind": "rnn"}}},
            "unknown mixer kind 'rnn'; known: mamba, mamba2, transformer, lstm, conv",
        ),
        (
            {"model": {"mixer": {"kind": "mamba", "d_stat": 3}}},
            "d_stat: no such field; did you mean d_state?",
        ),
        ({"model": {"mixer": {"kind": "mamba", "directions": 3}}}, "model.mixer.directions: 3 is not one of 1, 2"),
        ({"model": {"mixer": "mamba"}}, "model.mixer: 'mamba' is not a mapping with fields such as kind"),
        ({"model": {"mixer": {"kind": "mamba2", "head_dim": 24}}}, "head_dim 24 must divide expand · d_model = 32"),
        ({"model": {"mixer": {"kind": "conv", "kernel": 8}}}, "kernel 8 must be odd"),
        ({"model": {"bands": "octaves"}}, "octaves"),
        ({"model": {"hop": 4096}}, "hop 4096 at most half"),
        ({"model": {"n_heads": 5}}, "n_heads 5 must divide d_model"),
        ({"model": {"targets": ["kazoo"]}}, "unknown target 'kazoo'"),
        ({"model": {"targets": []}}, "non-empty"),
        ({"model": {"memory_tokens": [1, 2, 3, -4]}}, "must not be negative"),
        (
            {"model": {"memory_tokens": [1, 2]}},
            "memory_tokens: [1, 2] is not a list of 4, each entry a whole",
        ),
        ({"model": {"memory_tokens": [1, "x", 3, 4]}}, "model.memory_tokens.1: 'x' is not a whole number"),
        ({"model": {"memory_alignment": "sideways"}}, "alignment: 'sideways' is not one of aligned, reference"),
        ({"model": {"causal": True, "memory_alignment": "reference"}}, "a causal network needs aligned"),
        ({"model": {"causal": True, "attention_window": 0}}, "attention_window: 0 is not a whole number of at least 1"),
        ({"model": {"widht": 3}}, "model.widht: no such field; known: network, sample_rate, n_fft, "),
        ({"loss": {"weights": {"magnitud": 1}}}, "unknown loss 'magnitud'"),
        ({"loss": {"weights": {"magnitude": 0}}}, "every loss has weight 0"),
        (
            {"loss": {"weights": {1: 2}}},
            "weights: {1: 2} is not a mapping of names, each value a",
        ),
        ({"loss": {"weights": {"magnitude": -1}}}, "loss.weights.magnitude: -1 is not a finite number of at least 0"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: nan is not a finite number above 0"),
        ({"training": {"beta1": 1}}, "training.beta1: 1 is not a finite number of at least 0 and below 1"),
        ({"training": {"steps": 0}}, "training.steps: 0 is not a whole number of at least 1"),
        ({"training": {"steps": "x"}}, "training.steps: 'x' is not a whole number of at least 1"),
        ({"training": {"steps": 2.5}}, "training.steps: 2.5 is not a whole number of at least 1"),
        ({"data": {"exclude": "a"}}, "data.exclude: 'a' is not a list, each entry text"),
        ({"data": {"skip_unreadable": "perhaps"}}, "data.skip_unreadable: 'perhaps' is not true or false"),
        ({"nonsense": 1}, "nonsense: no such field; known: model, loss, training, data"),
        ({"modle": {"hop": 512}}, "modle: no such field; did you mean model?"),
        ({"model": 3}, "model: 3 is not a mapping with fields such as network"),
    ],
)
def test_bad_values_are_named(changes, sentence):
    with pytest.raises(InputError, match=r"^configuration: ") as caught:
        preset("tiny").override(changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_fields_are_named():
    with pytest.raises(InputError, match="model: missing; set it to a mapping with fields such as network"):
        from_dict({})
    with pytest.raises(InputError, match=r"configuration: model\.n_heads: missing; set it to a whole number"):
        from_dict({"model": {"d_model": 8}})


def test_unknown_preset():
    with pytest.raises(
        InputError, match="unknown preset 'huge'; known: reference, reference-large, paper, small, tiny"
    ):
        preset("huge")


def test_override_merges_except_another_mixer_and_the_loss_weights():
    base = preset("tiny")
    changed = base.override({"model": {"hop": 256}, "loss": {"weights": {"magnitude": 1}}})
    assert changed.model.hop == 256
    assert changed.model.bands == base.model.bands
    assert changed.loss.weights == {"magnitude": 1}
    assert base.override({"model": {"mixer": {"kind": "transformer"}}}).model.mixer == mixers.Transformer()
    assert base.override({"model": {"mixer": {"d_state": 4}}}).model.mixer == mixers.Mamba(d_state=4)


def test_networks_that_are_not_causal_keep_their_hash():
    # From before there were causal networks, when the preset saw left and right.
    assert preset("tiny").override({"model": {"mid_side": False}}).hash == "7d6acaa65bb2ffb8"
    assert not {"causal", "attention_window"} & set(preset("tiny").to_dict()["model"])
    causal = preset("tiny").override({"model": {"causal": True, "attention_window": 4}})
    assert (causal.model.causal, from_dict(causal.to_dict())) == (True, causal)
    assert causal.hash != preset("tiny").hash
    assert causal.override({"model": {"causal": False}}).hash == preset("tiny").hash


def test_hash_tells_configurations_apart():
    base = preset("tiny")
    assert base.hash == preset("tiny").hash
    assert base.hash != base.override({"training": {"seed": 1}}).hash
    assert len(base.hash) == 16


def test_frozen():
    with pytest.raises(AttributeError):
        preset("tiny").model.d_model = 3


def test_derived_sizes():
    model = preset("paper").model
    assert (model.n_bands, model.n_bins, model.d_ff, model.min_samples) == (72, 1025, 682, 1792)
    mamba = model.mixer
    assert (mamba.inner_width(256), mamba.dt_rank(256), mamba.dt_rank(250)) == (512, 16, 16)
    assert preset("tiny").model.min_samples == 7 * 1024


def test_targets_and_residual_name_the_stems():
    model = {"d_model": 8, "n_heads": 2, "n_enc": 1, "n_bottleneck": 2, "n_dec": 1, "residual": True}
    assert UNetConfig(**model).stems == ("instrumental", "vocals")
    assert UNetConfig(**model, targets=("drums", "bass")).stems == ("drums", "bass", "residual")


def test_learning_rate_warms_up_and_falls_to_the_floor():
    t = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, cosine_floor=0.1)
    rates = [schedule.learning_rate(step, t) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))


@given(steps=st.integers(1, 50), warmup=st.integers(0, 80))
def test_learning_rate_is_positive_and_bounded(steps, warmup):
    t = TrainingConfig(steps=steps, warmup_steps=warmup, learning_rate=0.5, cosine_floor=0.05)
    assert all(0 < schedule.learning_rate(step, t) <= 0.5 for step in range(steps))


def test_ema_decay_ramps_up():
    t = TrainingConfig(ema_decay=0.99)
    decays = [schedule.ema_decay(step, t) for step in range(2000)]
    assert decays[0] == pytest.approx(0.1)
    assert decays[-1] == 0.99
    assert decays == sorted(decays)


def test_draws_are_keyed_by_seed_and_name():
    a = initializers.draw("enc1.0.w", (3, 4), initializers.normal(1.0), 0)
    assert a.dtype == np.float32
    assert np.array_equal(a, initializers.draw("enc1.0.w", (3, 4), initializers.normal(1.0), 0))
    assert not np.array_equal(a, initializers.draw("enc1.1.w", (3, 4), initializers.normal(1.0), 0))
    assert not np.array_equal(a, initializers.draw("enc1.0.w", (3, 4), initializers.normal(1.0), 1))


def test_segment_samples_follow_the_sample_rate():
    assert preset("tiny").segment_samples == 132_300


def test_another_network_keeps_what_it_shares_with_the_former():
    chosen = preset("tiny").override({"model": {"network": "flat", "n_layers": 3}})
    assert isinstance(chosen.model, FlatConfig)
    assert chosen.model.n_layers == 3
    for shared in ("d_model", "hop", "mixer", "features", "init", "bands"):
        assert getattr(chosen.model, shared) == getattr(preset("tiny").model, shared)
    assert not hasattr(chosen.model, "memory_tokens")
    sizes = {"n_enc": 1, "n_bottleneck": 2, "n_dec": 1, "memory_tokens": [32, 24, 16, 8]}
    assert chosen.override({"model": {"network": "unet", **sizes}}) == preset("tiny")


def test_a_configuration_without_a_network_is_a_u_net():
    values = preset("tiny").to_dict()
    del values["model"]["network"]
    assert from_dict(values) == preset("tiny")
