"""Published separators that their own packages compute, as networks like ours.

``pip install 'twinsep[systems]'`` installs the packages. Systems with published weights use those on the machine; the
others start from random weights, drawn by their package.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_impl.layers import Parameter
from torch_impl.network import Network
from twinsep.config import Config, PackageConfig
from twinsep.errors import InputError


class Package(NamedTuple):
    """A stereo model at 44.1 kHz: its module, how to build it for stems, the stems it has, and its weights."""

    module: str
    build: Callable[[Any, tuple[str, ...]], nn.Module]
    #: Stems in the order of the output; None: those asked for.
    sources: tuple[str, ...] | None
    #: Loads published weights into the model; None if there are none.
    pretrained: Callable[[nn.Module], nn.Module] | None = None


FOUR = ("drums", "bass", "other", "vocals")
SIX = (*FOUR, "guitar", "piano")


def _moises_light(name: str) -> Package:
    def build(package: Any, stems: tuple[str, ...]) -> nn.Module:
        return package.MoisesLight(**package.configs[name] | {"sources": list(stems)})

    return Package("moises_light", build, None)


def _demucs(name: str, sources: tuple[str, ...]) -> Package:
    def build(package: Any, stems: tuple[str, ...]) -> nn.Module:  # noqa: ARG001
        if name.startswith("mdx"):  # a bag of four hybrid networks
            return package.HDemucs(list(sources), channels=48, growth=2, nfft=4096, segment=44)
        # the configuration of the released weights, 41,984,456 of them for four stems
        return package.HTDemucs(list(sources), segment=7.8, bottom_channels=512, dconv_mode=3)

    module = "demucs.hdemucs" if name.startswith("mdx") else "demucs.htdemucs"
    return Package(module, build, sources, lambda _: _load_demucs(name))


def _load_demucs(name: str) -> nn.Module:
    """Load the bag of released networks from PyTorch's cache; nothing is downloaded."""
    import yaml

    package = importlib.import_module("demucs.pretrained")
    apply = importlib.import_module("demucs.apply")
    bag = yaml.safe_load((package.REMOTE_ROOT / f"{name}.yaml").read_text())
    files = package._parse_remote_files(package.REMOTE_ROOT / "files.txt")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    wanted = [folder / files[signature].rpartition("/")[2] for signature in bag["models"]]
    missing = [path.name for path in wanted if not path.exists()]
    if missing:
        raise InputError(
            f"{name} needs its released weights: put {', '.join(missing)} from {package.ROOT_URL} into {folder}"
        )
    states = importlib.import_module("demucs.states")
    repo = importlib.import_module("demucs.repo")
    for path in wanted:
        repo.check_checksum(path, path.stem.rpartition("-")[2])
    with warnings.catch_warnings(action="ignore"):  # deprecations in the package
        networks = [states.load_model(path) for path in wanted]
    return _Bag(networks, bag.get("weights"), apply.apply_model)


class _Bag(nn.Module):
    """The weighted mean of several networks, the weights by network and stem."""

    def __init__(self, networks: list[Any], weights: list[list[float]] | None, apply_model: Callable[..., Tensor]):
        super().__init__()
        self.networks, self.apply_model = nn.ModuleList(networks), apply_model
        own = torch.ones(len(networks), len(networks[0].sources)) if weights is None else torch.tensor(weights)
        self.register_buffer("share", own / own.sum(0))

    def forward(self, mixture: Tensor) -> Tensor:
        """Return the stems (b, stems, 2, s)."""
        outputs = [self.apply_model(network, mixture, shifts=0, split=False) for network in self.networks]
        share = self.get_buffer("share")
        return torch.stack([share[i, :, None, None] * y for i, y in enumerate(outputs)]).sum(0)


def _spleeter(_: Any, __: tuple[str, ...]) -> nn.Module:
    from torch_impl.baselines.spleeter import Spleeter

    return Spleeter()


def _load_spleeter(model: nn.Module) -> nn.Module:
    from torch_impl.baselines.spleeter import Spleeter, load_weights

    assert isinstance(model, Spleeter)
    load_weights(model)
    return model


class _WholeFrames(nn.Module):
    """Pads the input to whole hops: the package's inverse STFT leaves out the rest."""

    def __init__(self, inner: nn.Module, hop: int):
        super().__init__()
        self.inner, self.hop = inner, hop

    def forward(self, x: Tensor) -> Tensor:
        """Return the stems of x (b, 2, s), at least as long."""
        return self.inner(nn.functional.pad(x, (0, -x.shape[-1] % self.hop)))


def _bs_roformer(package: Any, stems: tuple[str, ...]) -> nn.Module:
    # Lu et al. 2023, arXiv 2309.02612: dimension 384, 6 layers of one Transformer along time and one along bands.
    options = {"dim": 384, "depth": 6, "time_transformer_depth": 1, "freq_transformer_depth": 1}
    model = package.BSRoformer(**options, stereo=True, num_stems=len(stems), stft_hop_length=512)
    return _WholeFrames(model, 512)


#: Name → package.
PACKAGES = {
    "bs-roformer/package": Package("bs_roformer", _bs_roformer, None),
    **{
        f"moises-light/{name}": _moises_light(name)
        for name in (
            *("paper_large", "paper_small", "fullband_large", "fullband_small"),
            *("fullband_large_wide", "fullband_small_wide"),
        )
    },
    "htdemucs": _demucs("htdemucs", FOUR),
    "htdemucs_ft": _demucs("htdemucs_ft", FOUR),
    "htdemucs_6s": _demucs("htdemucs_6s", SIX),
    "mdx_extra": _demucs("mdx_extra", FOUR),
    "spleeter-2stems": Package("torch", _spleeter, ("vocals", "instrumental"), _load_spleeter),
}


class PackageNetwork(Network):
    """A system of another package: mixture (b, 2, s) to stems (b, stems, 2, s), float32, s ≥ 1.

    A stem that the system does not have is the sum of those it has: "instrumental" of all except the vocals, "other" of
    other, guitar and piano. Raises :class:`InputError` if the package is missing.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        assert isinstance(config.model, PackageConfig)
        self.model = config.model
        self.package = PACKAGES[config.model.system]
        package = import_package(config.model.system)
        wanted = config.model.targets
        self.sources = self.package.sources or wanted
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.inner = self.package.build(package, self.sources)
        _adopt(self.inner)

    def load_pretrained(self) -> None:
        """Load the published weights, if there are any; raises :class:`InputError` if they are not on this machine."""
        if self.package.pretrained is not None:
            self.inner = self.package.pretrained(self.inner)
            _adopt(self.inner)

    @overload
    def forward(self, mixture: Tensor, *, return_auxiliary_outputs: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(
        self, mixture: Tensor, *, return_auxiliary_outputs: Literal[True]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self, mixture: Float[Tensor, "b 2 s"], *, return_auxiliary_outputs: bool = False
    ) -> Float[Tensor, "b stems 2 s"] | tuple[Float[Tensor, "b stems 2 s"], dict[str, Tensor]]:
        """Separate the mixture into stems; with ``return_auxiliary_outputs`` also return an empty dictionary.

        No package returns more.
        """
        samples = mixture.shape[-1]
        x = nn.functional.pad(mixture, (0, max(0, self.model.min_samples - samples)))
        with warnings.catch_warnings(action="ignore"):  # deprecation warnings of the packages themselves
            y = self.inner(x)
        y = (y if y.ndim == 4 else y[:, None])[..., :samples]  # a model of one stem may leave out its axis
        found = dict(zip(self.sources, y.unbind(1), strict=True))
        stems = [self.stem(found, target) for target in self.model.targets]
        if self.model.residual:
            stems.append(mixture - sum(stems))
        y = torch.stack(stems, 1)
        return (y, {}) if return_auxiliary_outputs else y

    @staticmethod
    def stem(found: dict[str, Tensor], target: str) -> Tensor:
        """One stem (b, 2, s) from those of the system."""
        if target == "instrumental" and target not in found:
            return sum(y for name, y in found.items() if name != "vocals")  # type: ignore[return-value]
        if target == "other" and "guitar" in found:
            return found["other"] + found["guitar"] + found["piano"]
        return found[target]


def _adopt(module: nn.Module) -> None:
    """Prepare a package's weights for training: no initialiser (the package drew them), weight decay for matrices."""
    for weight in module.parameters():
        weight.__class__ = Parameter
        weight.initialiser, weight.decay = None, weight.ndim > 1  # type: ignore[attr-defined]


def import_package(system: str) -> Any:
    """Import the package of ``system``; raises :class:`InputError` naming the command that installs it."""
    try:
        return importlib.import_module(PACKAGES[system].module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{system} needs the package {error.name}; install it with: pip install 'twinsep[systems]'"
        ) from error


def missing() -> list[str]:
    """Return the names of the systems whose package is not installed."""
    return [name for name, entry in PACKAGES.items() if not _installed(entry.module.partition(".")[0])]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a test hides the package: sys.modules[name] is None
        return False
