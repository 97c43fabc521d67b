"""The causal network: no output reads later input, at any level, and a stream gives what a whole signal gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jax_impl
import torch_impl
from ablations import comparison
from jax_impl.causal_unet import CausalBandSplitUNet
from torch_impl.causal import delayed, memory_at, memory_tokens, running_memory, start_memory, update_memory
from torch_impl.causal_unet import STRIDES
from torch_impl.layers import named_parameters
from torch_impl.mixers.transformer import rotate
from torch_impl.window import WindowAttention
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.config import preset
from twinsep.config.mixers import MIXERS
from twinsep.errors import InputError
from twinsep.model.running_memory import CHUNK, rates

SMALL = {
    "d_model": 8,
    "n_heads": 2,
    "bands": "vocal18",
    "memory_tokens": [3, 1, 2, 4],
    "attention_window": 3,
    "causal": True,
}
KINDS = {
    "mamba": {"kind": "mamba", "d_state": 4},
    "mamba2": {"kind": "mamba2", "d_state": 4, "head_dim": 8},
    "transformer": {"kind": "transformer"},
    "lstm": {"kind": "lstm"},
    "conv": {"kind": "conv", "kernel": 5},
}


def configuration(kind, **model):
    return preset("tiny").override({"model": SMALL}).override({"model": {"mixer": KINDS[kind]} | model})


def network(kind, dtype="float64", **model):
    return comparison.torch_separator(configuration(kind, **model), dtype).eval()


def saved(config, folder):
    """A checkpoint with weights of no special structure."""
    path = folder / "model.safetensors"
    weights = {f"model/{name}": w.astype(np.float32) for name, w in comparison.weights_of(config).items()}
    checkpoints.write(path, Checkpoint(config, weights | {n.replace("model/", "ema/"): w for n, w in weights.items()}))
    return path


def noise(*shape, seed=0):
    return torch.from_numpy(0.1 * np.random.default_rng(seed).standard_normal(shape))


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def streamed(push, state, mixture, model):
    """The stems of a mixture (1, 2, s) pushed in blocks of a hop, without the latency."""
    hop, late = model.hop, model.n_fft - model.hop
    padded = np.pad(mixture, ((0, 0), (0, 0), (0, late + -(mixture.shape[-1] + late) % hop)))
    out = []
    for block in np.split(padded, padded.shape[-1] // hop, axis=-1):
        y, state = push(block, state)
        out.append(np.asarray(y))
    return np.concatenate(out, -1)[..., late : late + mixture.shape[-1]]


def in_torch(model):
    def push(block, state):
        with torch.inference_mode():
            return model.push(torch.from_numpy(block), state)

    return push, model.start()


def test_every_mixer_has_a_causal_form():
    for twin in (torch_impl, jax_impl):
        assert set(KINDS) <= set(twin.mixers.CAUSAL_MIXERS) <= set(MIXERS)


def test_a_mixer_without_a_causal_form_is_refused(monkeypatch):
    monkeypatch.delitem(torch_impl.mixers.CAUSAL_MIXERS, "conv")
    with pytest.raises(InputError, match="the mixer conv has no form that reads only the past: choose one of mamba"):
        torch_impl.networks.build(configuration("conv"))


# ---------------------------------------------------------------------------- the future


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [8, 21, 30])
def test_no_frame_of_any_level_reads_a_later_frame(kind, first):
    model = network(kind)
    names = [name for name, _ in model.named_modules()]
    blocks = [n for n in names if re.fullmatch(r"(enc|dec)[123]\.\d+|bottleneck\.\d+|(down|up)[123]", n)]
    seen = {}

    def record(name):
        return lambda _module, _inputs, y: seen.setdefault(name, []).append(y)

    for name in blocks:
        model.get_submodule(name).register_forward_hook(record(name))
    x = noise(1, model.model.n_bands, 40, 8)
    changed = x.clone()
    changed[:, :, first:] += noise(1, model.model.n_bands, 40 - first, 8, seed=1)
    with torch.inference_mode():
        seen["output"] = [model.network(x), model.network(changed)]
    strides = {"enc1": 1, "dec1": 1, "output": 1, "enc2": 2, "down1": 2, "dec2": 2, "enc3": 4, "down2": 4, "dec3": 4}
    strides |= {"down3": 8, "bottleneck": 8, "up1": 1, "up2": 2, "up3": 4}
    assert {name.split(".")[0] for name in seen} == set(strides)
    for name, (before, after) in seen.items():
        unchanged = first // strides[name.split(".")[0]]
        if name.startswith("up"):  # before its delay of one frame
            unchanged = max(0, unchanged - 1)
        assert torch.equal(before[:, :, :unchanged], after[:, :, :unchanged]), name
        assert not torch.equal(before, after), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_sample_reads_one_that_is_a_window_later(kind):
    model = network(kind, "float32", targets=["drums", "bass"])
    x, first = noise(1, 2, 40_001).float(), 30_000
    changed = x.clone()
    changed[..., first:] = noise(1, 2, 10_001, seed=1)
    with torch.inference_mode():
        before, after = model(x), model(changed)
    unchanged = first - model.model.latency + 1
    assert torch.equal(before[..., :unchanged], after[..., :unchanged])
    assert not torch.equal(before[..., unchanged + model.model.hop :], after[..., unchanged + model.model.hop :])


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_of_any_level_of_the_jax_twin_reads_a_later_frame(kind, monkeypatch):
    config, first = configuration(kind), 21
    functional = jax_impl.train.Functional(jax_impl.networks.build(config))
    weights = {name: jnp.asarray(w, jnp.float32) for name, w in comparison.weights_of(config).items()}
    seen = {}

    def recorded(method):
        return lambda self, name, *inputs: seen.setdefault(name, method(self, name, *inputs))

    monkeypatch.setattr(CausalBandSplitUNet, "stage", recorded(CausalBandSplitUNet.stage))

    def levels(weights, x):
        seen.clear()
        y = functional.model(weights).network(x)
        return {**seen, "output": y}

    x = noise(1, config.model.n_bands, 40, 8).float().numpy()
    changed = x.copy()
    changed[:, :, first:] += 1
    run = jax.jit(levels)
    before, after = run(weights, jnp.asarray(x)), run(weights, jnp.asarray(changed))
    strides = {"enc1": 1, "dec1": 1, "output": 1, "enc2": 2, "dec2": 2, "enc3": 4, "dec3": 4, "bottleneck": 8}
    assert before.keys() == strides.keys()
    for name, stride in strides.items():
        unchanged = first // stride
        assert (before[name][:, :, :unchanged] == after[name][:, :, :unchanged]).all(), name
        assert (before[name] != after[name]).any(), name


def test_the_jax_twin_reads_no_later_sample():
    config = configuration("transformer")
    functional = jax_impl.train.Functional(jax_impl.networks.build(config))
    weights = {name: jnp.asarray(w, jnp.float32) for name, w in comparison.weights_of(config).items()}
    separate = jax.jit(functional)
    x = noise(1, 2, 30_000).float().numpy()
    changed = np.concatenate([x[..., :20_000], 1 + x[..., 20_000:]], -1)
    before, after = (np.asarray(separate(weights, y)) for y in (x, changed))
    unchanged = 20_000 - config.model.latency + 1
    assert (before[..., :unchanged] == after[..., :unchanged]).all()
    assert (before[..., unchanged:] != after[..., unchanged:]).any()


# ---------------------------------------------------------------------------- the stream


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-13), ("float32", 1e-5)])
def test_a_stream_gives_what_the_whole_signal_gives(kind, dtype, bar):
    model = network(kind, dtype, residual=True, mid_side=kind == "lstm", hop=768 if kind == "conv" else 1024)
    # At the hop of conv, the longer signal reaches beyond the frames of a chunk.
    x = noise(1, 2, 61_007 if kind == "conv" else 40_007).numpy().astype(dtype)
    with torch.inference_mode():
        whole = model(torch.from_numpy(x)).numpy()
    assert relative(streamed(*in_torch(model), x, model.model), whole) <= bar


@pytest.mark.parametrize("options", [{"levels": 0}, {"levels": 1}, {"memory_tokens": [0, 0, 0, 0]}])
def test_networks_with_fewer_parts_stream_too(options):
    model = network("mamba", **options)
    x = noise(1, 2, 30_000).numpy()
    with torch.inference_mode():
        whole = model(torch.from_numpy(x)).numpy()
    assert relative(streamed(*in_torch(model), x, model.model), whole) <= 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_the_jax_twin_streams_the_same(kind):
    config = configuration(kind)
    functional = jax_impl.train.Functional(jax_impl.networks.build(config))
    weights = {name: jnp.asarray(w, jnp.float32) for name, w in comparison.weights_of(config).items()}
    step = jax.jit(lambda weights, block, state: functional.model(weights).push(block, state))
    start = jax.jit(lambda weights: functional.model(weights).start())(weights)
    x = noise(1, 2, 30_000).float().numpy()
    with torch.inference_mode():
        whole = network(kind, "float32")(torch.from_numpy(x)).numpy()
    found = streamed(lambda block, state: step(weights, block, state), start, x, config.model)
    assert relative(found, whole) <= 1e-5
    assert step._cache_size() == 1  # one program for all blocks


def test_the_state_does_not_grow():
    push, state = in_torch(network("transformer"))
    sizes = []
    for _ in range(20):
        _, state = push(noise(1, 2, 1024).numpy(), state)
        sizes.append(sum(x.numel() for x in torch.utils._pytree.tree_leaves(state) if isinstance(x, torch.Tensor)))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("twin", [torch_impl, jax_impl])
def test_the_stream_of_a_separator_gives_its_whole_signal(twin, tmp_path):
    separator = twin.load(saved(configuration("conv", levels=1), tmp_path))
    x = noise(2, 5_000).float().numpy()
    stream = separator.stream()
    found = [stream.push(block) for block in np.split(x, [1, 700, 3_000], axis=-1)]
    found = np.concatenate([*found, stream.finish()], -1)
    whole = twin.devices.on_numpy(separator, twin.devices.find_device("cpu"))(x[None])
    assert found.shape == (1, 2, 5_000)
    assert relative(found, whole[0]) <= 1e-5


@pytest.mark.parametrize("twin", [torch_impl, jax_impl])
def test_a_separator_that_reads_the_future_has_no_stream(twin, tmp_path):
    with pytest.raises(InputError, match=r"take one with model\.causal, such as tiny-causal"):
        twin.load(saved(configuration("mamba", causal=False), tmp_path)).stream()


# ---------------------------------------------------------------------------- the parts


@settings(max_examples=15)
@given(st.sampled_from([1, 2, CHUNK, CHUNK + 1, 3 * CHUNK - 1]), st.integers(1, 5))
def test_running_memory_is_the_weighted_mean_of_the_past(frames, tokens):
    x, alphas = noise(1, 2, frames, 3), rates(tokens, 0.05)
    found, state = running_memory(x, alphas), start_memory(1, 2, tokens, x[0, 0, 0])
    for t in range(frames):
        state = update_memory(x[:, :, t], state, alphas)
        torch.testing.assert_close(memory_tokens(state), found[:, :, t], rtol=1e-9, atol=1e-12)
    for i, alpha in enumerate(alphas):
        weights = torch.tensor([alpha * (1 - alpha) ** (frames - 1 - s) for s in range(frames)], dtype=x.dtype)
        mean = torch.einsum("s,bksd->bkd", weights / weights.sum(), x)
        torch.testing.assert_close(found[:, :, -1, i], mean, rtol=1e-9, atol=1e-12)


def test_the_time_constants_reach_from_one_frame_to_eight_seconds():
    assert rates(3, 0.08) == pytest.approx((1, 0.1, 0.01))
    assert rates(1, 0.08) == pytest.approx((0.01,))
    assert rates(0, 0.08) == ()


def test_a_decoder_reads_the_last_complete_frame_of_every_level():
    count = 21  # frames of level 1
    levels = [torch.arange(count // stride, dtype=torch.float64)[None, None, :, None, None] for stride in STRIDES]
    memory = list(zip(levels, STRIDES, strict=True))
    for stride in STRIDES[:3]:
        found = memory_at(memory, count // stride, stride)[0, 0, :, :, 0]
        for t, row in enumerate(found):
            # Before the first frame of a level is complete, its tokens are 0, as those of frame 0 are here.
            assert row.tolist() == [max(0, (t + 1) * stride // each - 1) for each in STRIDES]
    early = memory_at([(x + 1, each) for x, each in memory], 3, 1)[0, 0, :, :, 0]
    assert early.tolist() == [[1, 0, 0, 0], [2, 1, 0, 0], [3, 1, 0, 0]]


def test_what_comes_up_is_one_frame_late():
    x = torch.arange(1.0, 7)[None, None, :, None]
    assert delayed(x, 6).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert delayed(x, 7).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert delayed(x[:, :, :0], 1).flatten().tolist() == [0]


@pytest.mark.parametrize(("frames", "window", "tokens"), [(1, 3, 1), (3, 3, 2), (4, 3, 2), (11, 4, 1), (5, 1, 2)])
@pytest.mark.parametrize("rotary", [False, True])
def test_window_attention_agrees_with_its_definition(frames, window, tokens, rotary):
    if rotary and tokens > 1:
        tokens = 1
    position = (lambda x, start: rotate(x, 100.0, start)) if rotary else None
    made = WindowAttention(configuration("mamba", attention_window=window).model, position).double()
    torch_impl.layers.initialise(made, 0)
    x = noise(2, frames, tokens, 8)
    q, k, v = (p(x).view(2, frames * tokens, 2, 4).transpose(1, 2) for p in (made.q_proj, made.k_proj, made.v_proj))
    if rotary:
        q, k = rotate(q, 100.0), rotate(k, 100.0)
    frame = torch.arange(frames).repeat_interleave(tokens)
    read = (frame[:, None] >= frame) & (frame[:, None] - frame < window)
    weights = torch.softmax((q @ k.mT / 2).masked_fill(~read, -torch.inf), -1)
    wanted = made.out_proj((weights @ v).transpose(1, 2).reshape(2, frames, tokens, 8))
    torch.testing.assert_close(made(x), wanted)
    state = made.start(2, tokens)
    for t in range(frames):
        y, state = made.step(x[:, t], state)
        torch.testing.assert_close(y, wanted[:, t])


# ---------------------------------------------------------------------------- options


def test_every_weight_learns_and_half_precision_is_close():
    model = network("mamba", "float32")
    x = noise(1, 2, 60_000).float()
    model(x).square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in named_parameters(model).values())
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            error = (model(x) - exact).norm() / exact.norm()
    assert 0 < error < 0.1


def test_the_names_of_weights_are_those_of_a_network_with_one_direction_over_time():
    both = [
        {name for name in named_parameters(torch_impl.networks.build(config)) if ".time." not in name}
        for config in (configuration("mamba"), configuration("mamba", causal=False))
    ]
    assert both[0] == both[1]


def test_the_latency_of_the_preset_is_below_50_ms():
    model = preset("tiny-causal").model
    assert model.latency / model.sample_rate <= 0.05
    assert preset("tiny").model.latency is None
