"""Songs and runs on a local Ray cluster of two workers, where Ray is installed."""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.cluster_items import double, killing
from helpers.corpus import RATE

import torch_impl
from twinsep import audio, checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.config import preset
from twinsep.errors import InputError, TwinsepError
from twinsep.separation import batch
from twinsep.separation.batch import SeparationOptions
from twinsep.utils import cluster


@pytest.fixture(scope="module")
def ray():
    """A cluster of two workers."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    variables = {"PYTHONPATH": path}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield ray
    ray.shutdown()


@pytest.mark.usefixtures("ray")
def test_items_run_side_by_side_and_an_error_costs_its_item_alone():
    outcomes = {outcome.item: outcome for outcome in cluster.run(double, [1, 2, 3])}
    assert (outcomes[1].result, outcomes[2].result) == (2, 4)
    assert isinstance(outcomes[3].error, TwinsepError)
    assert str(outcomes[3].error) == "three is not wanted"


@pytest.mark.usefixtures("ray")
def test_a_worker_that_dies_is_replaced_and_costs_its_item_at_most(tmp_path):
    outcomes = {outcome.item: outcome for outcome in cluster.run(partial(killing, folder=str(tmp_path)), [-1, 0, 1, 2])}
    assert [outcomes[x].result for x in (0, 1, 2)] == [0, 1, 2]
    assert "its worker died 4 times, perhaps because memory ran out" in str(outcomes[-1].error)


@pytest.fixture
def checkpoint(tmp_path):
    """Drawn weights of a small network."""
    config = preset("tiny").override({"model": {"d_model": 8, "n_heads": 2, "bands": "vocal18"}})
    model = torch_impl.networks.build(config)
    torch_impl.layers.initialise(model, 0)
    weights = {f"model/{name}": w.detach().numpy() for name, w in torch_impl.layers.named_weights(model).items()}
    path = tmp_path / "weights.safetensors"
    checkpoints.write(path, Checkpoint(config, weights))
    return path


@pytest.mark.usefixtures("ray")
def test_songs_on_a_cluster_are_those_of_one_process(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    songs = [Path(f"song{i}.wav") for i in range(3)]
    for i, song in enumerate(songs):
        noise = 0.1 * np.random.default_rng(i).standard_normal((2, RATE // 2)).astype(np.float32)
        audio.write(song, noise, RATE, subtype="FLOAT")
    broken = Path("broken.wav")
    broken.write_bytes(b"no song")
    for executor in ("local", "ray"):
        options = SeparationOptions(
            out=Path(executor), checkpoint=Path(checkpoint.name), executor=executor, device="cpu"
        )
        with pytest.raises(InputError, match=r"1 of 4 songs failed, see above: broken\.wav"):
            batch.separate_files([*songs, broken], options)
    for song in songs:
        one, other = (audio.read(next(Path(e).glob(f"{song.stem}/*.wav")))[0] for e in ("local", "ray"))
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    # What is there is passed over.
    options = SeparationOptions(
        out=Path("ray"), checkpoint=checkpoint, executor="ray", device="cpu", skip_existing=True
    )
    batch.separate_files(songs, options)


def test_a_missing_ray_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--executor ray needs the package ray; .*'twinsep\[cluster\]'"):
        list(cluster.run(double, [1]))
