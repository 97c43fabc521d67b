"""The networks by the name in ``model.network``."""

from jax_impl.baselines.moises_light import SIZES, MoisesLightNetwork
from jax_impl.causal_unet import CausalBandSplitUNet
from jax_impl.flat import BandSplitFlat
from jax_impl.network import Network
from jax_impl.spectrogram_unet import SpectrogramUNet
from jax_impl.unet import BandSplitUNet
from twinsep.config import Config, PackageConfig, UNetConfig
from twinsep.errors import InputError

NETWORKS: dict[str, type[Network]] = {
    "unet": BandSplitUNet,
    "flat": BandSplitFlat,
    "spectrogram-unet": SpectrogramUNet,
}


def build(config: Config) -> Network:
    """Build the network of a configuration, with uninitialised weights; raises InputError for one it cannot build."""
    if isinstance(config.model, PackageConfig):
        if config.model.system in SIZES:
            return MoisesLightNetwork(config)
        raise InputError("this system is computed by its own package, in PyTorch: choose the framework torch")
    if isinstance(config.model, UNetConfig) and config.model.causal:
        return CausalBandSplitUNet(config)
    return NETWORKS[config.model.network](config)
