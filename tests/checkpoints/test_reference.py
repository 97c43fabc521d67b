"""`twinsep convert`: equal outputs of the reference model (in reference_model.py) and ours, and refusals."""

import copy
import functools
import hashlib
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reference_model import Reference, band_edges

import jax_impl
import torch_impl
from twinsep import checkpoints, cli
from twinsep.checkpoints import reference
from twinsep.config import preset
from twinsep.errors import InputError

GOLDEN = Path(__file__).with_name("golden") / "reference_keys.txt"
TOLERANCE = {"float64": 1e-8, "float32": 1e-5}  # the twins' constant matrices are float32 even in a float64 model
SIZES = {"d": 8, "heads": 2, "n": 4, "enc": 2, "bottleneck": 4, "dec": 2, "mid_side": False}
SMALL = {**SIZES, "enc": 1, "bottleneck": 2, "dec": 1}
KEYS = {"d": "d_model", "heads": "n_heads", "n": "d_state", "enc": "n_encoder_layers", "dec": "n_decoder_layers"}
KEYS |= {"bottleneck": "n_bottleneck_layers", "mid_side": "use_mid_side"}
MAMBA = "enc1.0.dual_path.intra_mamba.mamba_fwd."


@functools.cache
def oracle(**sizes):
    """Return a reference model with every weight perturbed, so that none equals another."""
    torch.manual_seed(0)
    model = Reference(**sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.requires_grad_(False)


def saved_by(model, **sizes):
    """Return a shortened form of the dictionary that the reference's training saves."""
    grid = {"n_fft": 2048, "hop_length": model.hop, "sample_rate": 44_100, "chunk_seconds": 4.0}
    config = grid | {KEYS[name]: size for name, size in sizes.items()}
    return {"global_step": 50, "model_state_dict": dict(model.state_dict()), "best_loss": 1.5, "config": config}


@pytest.fixture
def saved():
    return saved_by(oracle(**SMALL), **SMALL)


@pytest.fixture
def converted(tmp_path):
    """Return a function that saves its argument, converts it and returns the path of the result."""

    def run(content, save=torch.save):
        save(content, tmp_path / "reference.pt")
        reference.convert(tmp_path / "reference.pt", tmp_path / "out" / "model.safetensors")
        return tmp_path / "out" / "model.safetensors"

    return run


def noise(frames):
    return 0.1 * torch.randn((1, 2, 256 * frames - 100), generator=torch.Generator().manual_seed(1))


def in_float64(model, x):
    return copy.deepcopy(model).double()(x.double())


def distance(found, wanted):
    found, wanted = (torch.from_numpy(np.asarray(x, np.float64)) for x in (found, wanted))
    return ((found - wanted).norm() / wanted.norm()).item()


def test_the_oracle_has_the_keys_and_shapes_of_the_reference():
    comments = [line[1:] for line in GOLDEN.read_text().splitlines() if line.startswith("#")]
    widths = [int(w) for line in comments for w in line.split() if re.fullmatch(r"[\d ]+", line)]
    assert widths == [hi - lo for lo, hi in band_edges()]
    wanted = {}
    for line in GOLDEN.read_text().splitlines()[len(comments) :]:
        key, shape = line.split()
        for k, w in enumerate(widths if "*" in key else [0]):
            sizes = [4 * w if size == "4w" else int(size) for size in shape.split("x")]
            wanted[key.replace("*", str(k))] = tuple(sizes)
    assert len(wanted) == 826
    assert {key: tuple(weight.shape) for key, weight in Reference().state_dict().items()} == wanted


@pytest.mark.usefixtures("one_thread")
def test_a_converted_model_has_the_output_of_the_reference_in_pytorch(converted):
    sizes = SIZES | {"mid_side": True}
    reference = oracle(**sizes)
    model = torch_impl.load(converted(saved_by(reference, **sizes))).requires_grad_(False)
    x = noise(146)  # 146, 73, 36 and 18 frames: an odd one is dropped, and every level is pooled
    assert distance(model(x)[:, 0], reference(x)) <= TOLERANCE["float32"]
    exact = in_float64(reference, x)
    assert distance(model(x)[:, 0], exact) <= TOLERANCE["float32"]
    assert distance(in_float64(model, x)[:, 0], exact) <= TOLERANCE["float64"]


def test_a_converted_model_has_the_output_of_the_reference_in_jax(converted):
    reference = oracle(**SMALL)
    model = jax_impl.load(converted(saved_by(reference, **SMALL)))
    x = noise(30)
    found = jax_impl.devices.on_numpy(model, jax_impl.devices.find_device("cpu"))(x.numpy())
    assert distance(found[:, 0], in_float64(reference, x)) <= TOLERANCE["float32"]


def halves_swapped(weights, name, axis):
    return {name: np.concatenate(np.split(weights[name], 2, axis)[::-1], axis)}


def exchanged(weights, one, other):
    found = {name: name.replace(one, other) for name in weights if one in name}
    return {a: weights[b] for a, b in found.items()} | {b: weights[a] for a, b in found.items()}


MUTANTS = {
    "halves of the gate": lambda w: halves_swapped(w, "dec1.0.skip.gate.weight", 1),
    "directions": lambda w: exchanged(w, "enc2.0.dual_path.time.forwards", "enc2.0.dual_path.time.backwards"),
    "time and bands": lambda w: exchanged(w, "enc3.0.dual_path.time", "enc3.0.dual_path.band"),
    "attentions": lambda w: exchanged(w, "dec3.0.memory.time", "dec3.0.memory.band"),
    "keys and values": lambda w: exchanged(w, "bottleneck.1.attention.k_proj", "bottleneck.1.attention.v_proj"),
    "turns of the bottleneck": lambda w: exchanged(w, "bottleneck.0.", "bottleneck.2."),
    "layers": lambda w: exchanged(w, "enc1.0.", "enc1.1."),
    "norms": lambda w: exchanged(w, "dec2.1.memory.band.norm_q", "dec2.1.memory.band.norm_kv"),
    "one real of one bin": lambda w: {"mask_head.bias2": np.roll(w["mask_head.bias2"], 1)},
    "two bands": lambda w: {"band_split.embedding": w["band_split.embedding"][:, ::-1]},
}


@pytest.mark.usefixtures("one_thread")
def test_any_wrong_mapping_of_weights_changes_the_output(converted):
    reference, x = oracle(**SIZES), noise(30)
    path = converted(saved_by(reference, **SIZES))
    model, wanted = torch_impl.load(path).requires_grad_(False), reference(x)
    weights = checkpoints.read(path).weights("model")
    assert distance(model(x)[:, 0], wanted) <= TOLERANCE["float32"]
    for name, mutate in MUTANTS.items():
        torch_impl.train.load_weights(model, weights | {k: w.copy() for k, w in mutate(weights).items()}, name)
        assert distance(model(x)[:, 0], wanted) > 10 * TOLERANCE["float32"], name


def test_a_converted_file_holds_configuration_and_provenance(converted, saved, tmp_path):
    found = checkpoints.read(converted(saved))
    digest = hashlib.sha256((tmp_path / "reference.pt").read_bytes()).hexdigest()
    assert found.provenance == {"source": "reference.pt", "sha256": digest}
    assert all(name.startswith("model/") and w.dtype == np.float32 for name, w in found.tensors.items())
    model = found.config.model
    assert (model.d_model, model.n_heads, model.n_enc, model.n_bottleneck, model.n_dec) == (8, 2, 1, 2, 1)
    assert (model.hop, model.bands, model.memory_alignment) == (256, "reference68", "reference")
    assert found.config.training.segment_seconds == 4.0
    assert found.config.loss == preset("reference").loss


def in_old_numpy(content, path):
    """Save as NumPy 1 did, whose scalars had another module name."""
    torch.save(content, path.with_name("new"))
    with zipfile.ZipFile(path.with_name("new")) as new, zipfile.ZipFile(path, "w") as old:
        for name in new.namelist():
            data = new.read(name)
            old.writestr(name, data.replace(b"numpy._core", b"numpy.core") if name.endswith("data.pkl") else data)


def test_every_variant_of_a_saved_checkpoint_converts_to_the_same_weights(converted, saved, tmp_path):
    """Variants: wrapped model in half precision, NumPy scalars in the optimiser state, other keys, fewer keys."""
    plain = checkpoints.read(converted(saved)).tensors
    weights = {key: w.half() for key, w in saved["model_state_dict"].items()}
    halves = {"model": {f"module._orig_mod.{key}": w for key, w in weights.items()}, "config": saved["config"]}
    scalars = saved | {"optimizer_state_dict": {"param_groups": [{"lr": np.float64(1e-4)}]}}
    odd = saved | {"config": saved["config"] | {"n_bottleneck_layers": 3, "ssm_variant": "mamba", "dropout": 0.05}}
    bare = saved | {"config": {"n_heads": 2, "hop_length": 256}}
    for content, save in ((halves, torch.save), (scalars, torch.save), (scalars, in_old_numpy), (odd, torch.save)):
        (tmp_path / "out" / "model.safetensors").unlink()
        found = checkpoints.read(converted(content, save)).tensors
        assert found.keys() == plain.keys()
        tolerance = 1e-3 if content is halves else 0
        assert all(np.allclose(found[name], plain[name], tolerance, tolerance) for name in plain)
    (tmp_path / "out" / "model.safetensors").unlink()
    assert checkpoints.read(converted(bare)).config.model.n_enc == 1


def test_config_json_overrides_the_saved_configuration(converted, saved, tmp_path):
    sections = {"audio": {"hop_length": 512, "n_fft": 2048}, "model": {"n_heads": 4, "use_mid_side": True}}
    (tmp_path / "config.json").write_text(json.dumps(sections | {"loss": {"x": 1}, "training": {}, "seed": 6}))
    model = checkpoints.read(converted(saved)).config.model
    assert (model.hop, model.n_heads, model.mid_side) == (512, 4, True)


def config_of(**changes):
    return lambda saved: saved["config"].update(changes)


def weight_of(key, change):
    def run(saved):
        weights = saved["model_state_dict"]
        weights[key] = change(weights.get(key))

    return run


REFUSALS = {
    "ssm_variant 'mamba3' cannot be converted": config_of(ssm_variant="mamba3"),
    "d_model is 16 in the configuration, but the weights show 8": config_of(d_model=16),
    "n_encoder_layers is 4 in the configuration, but the weights show 1": config_of(n_encoder_layers=4),
    "n_decoder_layers is 2 in": config_of(n_decoder_layers=2),
    "n_bottleneck_layers is 6 in the configuration, but the weights show 2": config_of(n_bottleneck_layers=6),
    "d_state is 32 in": config_of(d_state=32),
    "d_conv is 3 in": config_of(d_conv=3),
    "expand is 4 in": config_of(expand=4),
    "n_fft 4096 at 44100 Hz makes 72 bands, but the weights show 68": config_of(n_fft=4096),
    "n_fft 2048 at 44000 Hz makes band ": config_of(sample_rate=44_000),
    "unknown key 'memory_tokens'": config_of(memory_tokens=80),
    "model.n_heads": config_of(n_heads="four"),
    "n_heads 3 must divide": config_of(n_heads=3),
    "model.hop": config_of(hop_length=0.5),
    "the value of 'hop_length' is neither": config_of(hop_length=[256]),
    "no 'n_heads', which the weights do not show": lambda saved: saved["config"].pop("n_heads"),
    "no configuration of the reference": lambda saved: saved.pop("config"),
    "no state dict under model_state_dict or model": lambda saved: saved.pop("model_state_dict"),
    "no state dict": lambda saved: saved.update(model_state_dict={}),
    "no weight 'dec1.0.ff.w3.weight'": lambda saved: saved["model_state_dict"].pop("dec1.0.ff.w3.weight"),
    "no weight 'band_split.band_pos'": lambda saved: saved["model_state_dict"].pop("band_split.band_pos"),
    "weight 'enc4.0.extra' has no place": weight_of("enc4.0.extra", lambda _: torch.zeros(1)),
    "weight 'module.extra' has no place": weight_of("module.extra", lambda _: torch.zeros(1)),
    f"weight '{MAMBA}D' has shape (15,)": weight_of(f"{MAMBA}D", lambda w: w[1:]),
    f"weight '{MAMBA}A_log' has shape (64,)": weight_of(f"{MAMBA}A_log", torch.flatten),
    "'up1.norm.weight' holds values that are not finite": weight_of("up1.norm.weight", lambda w: w / 0),
    "weight 'down1.conv.bias' is not a floating-point array": weight_of("down1.conv.bias", lambda w: w.int()),
    "weight 'down2.conv.bias' is not a floating-point array": weight_of("down2.conv.bias", lambda _: 0.5),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_a_checkpoint_of_another_model_is_refused(converted, saved, tmp_path, sentence):
    REFUSALS[sentence](saved)
    with pytest.raises(InputError, match=re.escape(sentence)):
        converted(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pt"]


class Touch:
    """Creates a file if the reader runs the code in a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_pickle_is_run(converted, saved, tmp_path):
    with pytest.raises(InputError, match="asks to run 'getattr'") as refusal:
        converted(saved | {"best_loss": Touch(tmp_path / "ran")})
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs ``twinsep convert`` and returns (exit status, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["twinsep", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return run


def test_the_command_replaces_a_file_only_if_asked(call, saved, tmp_path):
    source, out = tmp_path / "reference.pt", tmp_path / "model.safetensors"
    torch.save(saved, source)
    assert call(source, out)[0] == 0
    written = out.read_bytes()
    status, said = call(source, out)
    assert (status, "exists; use --overwrite" in said) == (2, True)
    assert call(source, out, "--overwrite")[0] == 0
    assert out.read_bytes() == written
    status, said = call(source, source, "--overwrite")
    assert (status, "is the checkpoint itself" in said) == (2, True)


def test_a_damaged_file_is_refused_in_one_sentence(call, saved, tmp_path):
    good, out = tmp_path / "good.pt", tmp_path / "new" / "model.safetensors"
    torch.save(saved, good)
    whole = good.read_bytes()
    torch.save(saved, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name, content in {
        "empty.pt": b"",
        "text.pt": b"no weights here\n",
        "cut.pt": whole[: len(whole) // 2],
        "head.pt": whole[:2000],
        "cut-legacy.pt": (tmp_path / "legacy.pt").read_bytes()[:20_000],
        "noise.pt": np.random.default_rng(0).bytes(5000),
        "pickle.pt": pickle.dumps({"model": [1]}),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert_refused(call(tmp_path / name, out), name)
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "odd").mkdir()
    torch.save(saved, tmp_path / "odd" / "good.pt")
    (tmp_path / "odd" / "config.json").write_text("{")
    for source, sentence in (
        (tmp_path / "none.pt", "does not exist"),
        (tmp_path, "is a folder, not a checkpoint"),
        (tmp_path / "list.pt", "no state dict"),
        (tmp_path / "odd" / "good.pt", "cannot be read as JSON"),
    ):
        assert_refused(call(source, out), sentence)
    assert_refused(call(good, tmp_path), "is a folder")
    assert_refused(call(good, tmp_path / "text.pt" / "model.safetensors"), "is a file where a folder is needed")
    assert not out.parent.exists()


def assert_refused(answer, sentence):
    status, said = answer
    assert status == 2
    assert sentence in said
    assert said.startswith("twinsep: ")
    assert said.count("\n") == 1


def test_without_pytorch_the_error_says_how_to_install_it(saved, tmp_path):
    torch.save(saved, tmp_path / "reference.pt")
    code = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None; from twinsep.checkpoints import reference\n"
        f"reference.convert(Path({str(tmp_path / 'reference.pt')!r}), Path({str(tmp_path / 'out')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'twinsep[torch]'" in done.stderr
