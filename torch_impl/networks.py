"""The networks by the name in ``model.network``."""

from torch_impl.causal_unet import CausalBandSplitUNet
from torch_impl.flat import BandSplitFlat
from torch_impl.network import Network
from torch_impl.spectrogram_unet import SpectrogramUNet
from torch_impl.unet import BandSplitUNet
from twinsep.config import Config, UNetConfig

NETWORKS: dict[str, type[Network]] = {
    "unet": BandSplitUNet,
    "flat": BandSplitFlat,
    "spectrogram-unet": SpectrogramUNet,
}


def build(config: Config) -> Network:
    """Build the network of a configuration, with uninitialised weights; raises InputError for one it cannot build."""
    if config.model.network == "package":
        from torch_impl.baselines.packages import PackageNetwork

        return PackageNetwork(config)
    if isinstance(config.model, UNetConfig) and config.model.causal:
        return CausalBandSplitUNet(config)
    return NETWORKS[config.model.network](config)
