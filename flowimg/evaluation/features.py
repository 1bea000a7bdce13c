"""Networks in whose features samples and data are compared.

A Fréchet distance depends on its network, the weights and the resizing. Each extractor therefore carries its name, the
SHA-256 of its weights and its resizing, which are reported with every score.

    inception-2015       the network of the FID papers, from torch-fidelity; weights from a file or its download
    <hub id>, folder ... any picture network in safetensors that transformers' AutoModel loads: CLIP, DINOv2, your own
    proxy-classifier     a small classifier trained on the labels of the run's data; needs no download
    proxy-random         fixed random convolutions; needs neither a download nor labels

Distances in a proxy rank runs on the same data; they cannot be compared with published results.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowimg.errors import ExtractorError
from flowimg.fields.classifier import Classifier
from flowimg.flow.randomness import generator
from flowimg.names import on_disk
from flowimg.spaces.pixels import AS_BYTES

INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the weights file that defines FID; its first digits are part of the file's name."""
INCEPTION_FILE = f"weights-inception-2015-12-05-{INCEPTION[:8]}.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


RGB = "RGB pictures of 8 bits"
"""As what published networks see pictures; grey ones have three equal channels, transparent ones lie over white."""


class Extractor(NamedTuple):
    """A network that maps pictures in [-1, 1], shape (B, C, H, W), to features (B, F), and its description.

    `sees` says as what it sees them; empty: as they are.
    """

    name: str
    sha256: str
    resize: str
    features: Callable[[Tensor], Tensor]
    distance: str = "FD"
    """The name of the Fréchet distance in these features."""
    sees: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """The features (B, F), on the CPU, always computed in full float32, whatever the precision of sampling."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), _no_tf32():
            return self.features(x).float().cpu()


def distance_name(extractor: Extractor, count: int) -> str:
    """FID-50k for 50,000 samples in the features of FID; else with the number of samples: FID@5,000, FD@5,000."""
    return "FID-50k" if extractor.distance == "FID" and count == 50_000 else f"{extractor.distance}@{count:,}"


def random_convolutions(channels: int, size: int, device: torch.device) -> Extractor:
    """Fixed random filters at several scales, rectified; features are the mean and spread of each over the plane.

    Args:
        channels: Channels of the pictures.
        size: Pixels a side.
        device: The device of the filters.
    """
    drawn, width = generator("random convolutions"), 48
    filters: list[Tensor] = []
    while size >= 2 and len(filters) < 4:
        filters.append(torch.randn(width, channels, 3, 3, generator=drawn) * (2 / (9 * channels)) ** 0.5)
        channels, size = width, size // 2
    weights = [weight.to(device) for weight in filters]

    def features(x: Tensor) -> Tensor:
        h, parts = x.to(device), []
        for level, weight in enumerate(weights):
            h = F.conv2d(F.avg_pool2d(h, 2) if level else h, weight, padding=1).relu()
            parts += [h.mean((2, 3)), h.std((2, 3), correction=0)]
        return torch.cat(parts, dim=1)

    return Extractor("proxy-random", _digest(filters), "none", features)


def classifier_features(classifier: Classifier, device: torch.device) -> Extractor:
    """The features of a classifier before its last layer, shape (B, 128)."""
    classifier = copy.deepcopy(classifier).to(device).eval()  # the caller's stays on its device

    def features(x: Tensor) -> Tensor:
        return classifier.features(x.to(device)).mean((2, 3))

    return Extractor("proxy-classifier", _digest(list(classifier.state_dict().values())), "none", features)


def inception(file: str | None, download: bool, device: torch.device) -> Extractor:
    """The 2015 Inception of the FID papers; its features are the 2,048 after the last pooling.

    Args:
        file: The published weights file; None for the one in torch's cache.
        download: Whether to download the weights if no file is given and the cache does not hold them.
        device: The device of the network.

    Raises:
        ExtractorError: If torch-fidelity or the weights are missing, or the weights are not those of FID.
    """
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        raise ExtractorError("the Inception of FID needs torch-fidelity: pip install -e '.[evaluate]'") from None
    path = on_disk(file) if file else Path(torch.hub.get_dir(), "checkpoints", INCEPTION_FILE)
    if not path.is_file():
        if file or not download:
            where = f"{file} is not a file" if file else f"the weights of Inception are not in {path}"
            raise ExtractorError(f"{where}: give the file by --inception, or fetch {INCEPTION_URL} by --download true")
        try:
            torch.hub.load_state_dict_from_url(INCEPTION_URL, check_hash=True, weights_only=True, map_location="cpu")
        except Exception as error:  # network errors have many types
            raise ExtractorError(f"downloading Inception's weights from {INCEPTION_URL} failed: {error}") from None
    with path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 != INCEPTION:
        raise ExtractorError(
            f"{path} does not hold the weights that define FID: its SHA-256 begins with {sha256[:16]} instead of "
            f"{INCEPTION[:16]}; the right ones are at {INCEPTION_URL}"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an arbitrary file raises errors of many types
        raise ExtractorError(f"{path} holds no readable weights: {str(error).splitlines()[0]}") from None
    return inception_of(weights, sha256, device)


def inception_of(weights: dict[str, Tensor], sha256: str, device: torch.device) -> Extractor:
    """torch-fidelity's Inception with these weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # it unpickles its file, so it gets one that was just written from plain tensors
    with tempfile.NamedTemporaryFile(suffix=".pth") as copied:
        torch.save(weights, copied.name)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=copied.name)
    network = network.to(device)

    def features(x: Tensor) -> Tensor:
        return network(_rgb(x).to(device))[0]

    return Extractor("inception-2015", sha256, "bilinear 299 as TensorFlow 1", features, "FID", RGB)


def transformer(source: str, download: bool, device: torch.device) -> Extractor:
    """A picture network in safetensors, loaded by transformers.

    Its features are the projected image embedding of CLIP; the pooled output of other networks; and the first token of
    networks stored without their pooling layer.

    Args:
        source: A folder with config.json and safetensors, or a model id of the Hugging Face hub.
        download: Whether to download the network if it is not on this machine.
        device: The device of the network.

    Raises:
        ExtractorError: If transformers is not installed, or the network is missing, incomplete or not for pictures.
    """
    path = on_disk(source)
    network, missing = _pretrained(source, download)
    clip = hasattr(network, "get_image_features")
    unpooled = any(name.startswith("pooler.") for name in missing)  # classifiers are stored without it
    optional = ("text_model.", "text_projection.", "logit_") if clip else ("pooler.",)  # not needed for pictures
    if needed := sorted(name for name in missing if not name.startswith(optional)):
        raise ExtractorError(f"{source} is incomplete: {len(needed)} weights are missing, among them {needed[0]}")
    network = network.to(device).eval().requires_grad_(False)
    # the config of DINOv2 says 518, its last training size, but published comparisons use it at 224
    sides = getattr(getattr(network.config, "vision_config", network.config), "image_size", 224)
    size = min(int(max(sides) if isinstance(sides, list | tuple) else sides), 224)
    normalised = _normalisation(str(path), path.is_dir() or not download, clip)
    shift, scale = (torch.tensor(value, device=device)[:, None, None] for value in normalised)

    def features(x: Tensor) -> Tensor:
        x = _rgb(x).to(device).float() / 255
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        x = (x - shift) / scale
        out = network.get_image_features(pixel_values=x) if clip else network(pixel_values=x)
        if isinstance(out, Tensor):
            return out
        pooled: Tensor | None = None if unpooled else out.pooler_output
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    try:
        features(torch.zeros(1, 3, size, size))
    except Exception as error:  # an arbitrary network raises errors of many types
        raise ExtractorError(
            f"{source} gives no features of an image ({_brief(error)}): name an image network"
        ) from None
    weights = {name: value for name, value in network.state_dict().items() if name not in missing}
    sha256 = _digest([*weights.values(), shift, scale], _architecture(network, weights))
    # the prefix keeps a folder of any name apart from the networks of this module and the hub
    name = f"folder {Path(source).name}" if path.is_dir() else source
    return Extractor(name, sha256, f"bicubic {size}, antialiased", features, sees=RGB)


def _pretrained(source: str, download: bool) -> tuple[Any, set[str]]:
    """The network of `transformer`, and the names of its weights that the files lack."""
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError:
        raise ExtractorError(f"{source} needs transformers: pip install -e '.[evaluate]'") from None
    path = on_disk(source)
    if path.is_file():
        raise ExtractorError(f"{source} is a file: give the folder that holds it, with its config.json")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # transformers fills missing weights with random ones and continues, so it has to list them
        network, loaded = AutoModel.from_pretrained(
            str(path), use_safetensors=True, trust_remote_code=False, local_files_only=path.is_dir() or not download,
            dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # an arbitrary folder raises errors of many types
        hint = "" if download else "; --download true fetches it from the hub"
        raise ExtractorError(
            f"there is no picture network in safetensors at {source} on this machine{hint} ({_brief(error)})"
        ) from None
    return network, {str(name) for name in loaded["missing_keys"]}


def _architecture(network: Any, weights: dict[str, Tensor]) -> str:
    """What else decides the features: the code's version, the settings, and the names and shapes of the weights."""
    from transformers import __version__ as version

    settings = {**network.config.to_dict(), "_name_or_path": None}
    return json.dumps([version, settings, [(name, list(value.shape)) for name, value in weights.items()]], default=str)


def _normalisation(source: str, local: bool, clip: bool) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pictures that a network was trained on, from its preprocessor_config.json.

    Without that file: those of CLIP, or of ImageNet, on which nearly all other networks are trained.
    """
    from transformers import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
        mean, deviation = ([float(n) for n in settings[name]] for name in ("image_mean", "image_std"))
        if len(mean) == len(deviation) == 3 and min(deviation) > 0:
            return mean, deviation
    except (OSError, KeyError, TypeError, ValueError):
        pass
    if clip:
        return [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _brief(error: Exception) -> str:
    """The beginning of an error message, on one line."""
    return " ".join(str(error).split())[:160]


def _rgb(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as published networks know them: three channels, uint8; transparent ones over white."""
    if x.shape[1] == 4:
        opaque = (x[:, 3:] + 1) / 2
        x = x[:, :3] * opaque + (1 - opaque)
    pixels = AS_BYTES.decode(x)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Convolutions and products in full float32: on GPUs the default TF32 keeps 10 bits of the mantissa."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _digest(tensors: list[Tensor], text: str = "") -> str:
    """SHA-256 of a text followed by the bytes of these tensors, in order."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
