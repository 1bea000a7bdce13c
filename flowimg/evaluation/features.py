"""Networks whose features samples and data are compared in.

A Fréchet distance is a figure of its network, weights and resizing; each extractor carries its name, the SHA-256 of its
weights and its resizing, for the line that is told with every figure.

    inception-2015       the network of the FID papers, as torch-fidelity has it; weights from a file or its download
    <hub id>, folder ... any picture network in safetensors that transformers' AutoModel knows: CLIP, DINOv2, your own
    proxy-classifier     a small classifier trained on the run's own labels: no download
    proxy-random         fixed random convolutions: neither download nor labels

What is called proxy ranks runs on the same data, and compares with nobody else's figures.
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
from flowimg.spaces.pixels import unit

INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the file of the weights that FID is defined by; its first digits are part of the file's name."""
INCEPTION_FILE = f"weights-inception-2015-12-05-{INCEPTION[:8]}.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


class Extractor(NamedTuple):
    """A network as features: uint8 pictures (B, C, H, W), C 1 or 3, to (B, F); and what it is."""

    name: str
    sha256: str
    resize: str
    features: Callable[[Tensor], Tensor]
    distance: str = "FD"
    """What the Fréchet distance in these features is called."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """The features of these pictures, (B, F), float32, on the CPU; in full precision, however samples are drawn."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), _full():
            return self.features(pixels).float().cpu()


def distance_name(extractor: Extractor, count: int) -> str:
    """FID-50k is one of 50,000 samples; any other number is named: FID@5,000, FD@5,000."""
    return "FID-50k" if extractor.distance == "FID" and count == 50_000 else f"{extractor.distance}@{count:,}"


def random_convolutions(channels: int, size: int, device: torch.device) -> Extractor:
    """Fixed random filters at several scales, rectified; mean and spread of each over the plane.

    Args:
        channels: Of the pictures.
        size: Pixels a side.
        device: Where it runs.
    """
    drawn = generator("random convolutions")
    filters: list[Tensor] = []
    width = 48
    while size >= 2 and len(filters) < 4:
        weight = torch.randn(width, channels, 3, 3, generator=drawn) * (2 / (9 * channels)) ** 0.5
        filters.append(weight)
        channels, size = width, size // 2
    found = _digest(filters)
    weights = [weight.to(device) for weight in filters]

    def features(pixels: Tensor) -> Tensor:
        h = unit(pixels.to(device))
        parts = []
        for place, weight in enumerate(weights):
            h = F.conv2d(F.avg_pool2d(h, 2) if place else h, weight, padding=1).relu()
            parts += [h.mean((2, 3)), h.std((2, 3), correction=0)]
        return torch.cat(parts, dim=1)

    return Extractor("proxy-random", found, "none", features)


def classifier_features(classifier: Classifier, device: torch.device) -> Extractor:
    """What the last layer of a classifier sees, shape (B, 128)."""
    classifier = copy.deepcopy(classifier).to(device).eval()  # its owner keeps it where it is
    found = _digest(list(classifier.state_dict().values()))

    def features(pixels: Tensor) -> Tensor:
        return classifier.features(unit(pixels.to(device))).mean((2, 3))

    return Extractor("proxy-classifier", found, "none", features)


def inception(file: str | None, download: bool, device: torch.device) -> Extractor:
    """The 2015 Inception of the FID papers, its 2,048 features after the last pooling.

    Args:
        file: Its weights, as they were published.
        download: Fetch them where no file is given.
        device: Where it runs.
    Raises:
        ExtractorError: If torch-fidelity or the weights are not there, or are other weights.
    """
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        raise ExtractorError(
            "the Inception of the FID papers is torch-fidelity's: pip install -e '.[evaluate]'"
        ) from None
    path = Path(file).expanduser() if file else Path(torch.hub.get_dir(), "checkpoints", INCEPTION_FILE)
    if not path.is_file():
        if file or not download:
            where = f"{file} is no file" if file else f"the weights of Inception are not in {path}"
            raise ExtractorError(f"{where}: give the file by --inception, or fetch {INCEPTION_URL} by --download true")
        try:
            torch.hub.load_state_dict_from_url(INCEPTION_URL, check_hash=True, weights_only=True, map_location="cpu")
        except Exception as error:  # of the network, of many types
            raise ExtractorError(f"Inception's weights could not be fetched from {INCEPTION_URL}: {error}") from None
    with path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 != INCEPTION:
        raise ExtractorError(
            f"{path} holds other weights than those that FID is defined by: its SHA-256 begins with {sha256[:16]} and "
            f"must with {INCEPTION[:16]}; they are at {INCEPTION_URL}"
        )
    return inception_of(_weights(path), sha256, device)


def inception_of(weights: dict[str, Tensor], sha256: str, device: torch.device) -> Extractor:
    """torch-fidelity's network with these weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # it opens its file by pickle, so it is given one that was just written from plain tensors
    with tempfile.NamedTemporaryFile(suffix=".pth") as aside:
        torch.save(weights, aside.name)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=aside.name)
    network = network.to(device)

    def features(pixels: Tensor) -> Tensor:
        return network(_three(pixels).to(device))[0]

    return Extractor("inception-2015", sha256, "bilinear 299 as TensorFlow 1", features, "FID")


def _weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a file, without unpickling anything else."""
    try:
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    except Exception as error:  # of many types, for a file that may be anything
        raise ExtractorError(f"{path} holds no weights that can be read: {str(error).splitlines()[0]}") from None


def transformer(source: str, download: bool, device: torch.device) -> Extractor:
    """A picture network in safetensors that transformers knows.

    Its features are the projected picture of CLIP, the pooled one of others, and the first token of those that are
    stored without what pools.

    Args:
        source: A folder with config.json and safetensors, or an id of the hub.
        download: Fetch it where it is not on this machine.
        device: Where it runs.
    Raises:
        ExtractorError: If there is no such network, or not all of it, or transformers is not installed.
    """
    try:
        from transformers import AutoModel
        from transformers import __version__ as version
        from transformers.utils import logging
    except ImportError:
        raise ExtractorError(f"{source} needs transformers: pip install -e '.[evaluate]'") from None
    if Path(source).expanduser().is_file():
        raise ExtractorError(f"{source} is a file: give the folder that holds it, with its config.json")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    local = Path(source).expanduser().is_dir() or not download
    try:
        found: tuple[Any, dict[str, Any]] = AutoModel.from_pretrained(
            str(Path(source).expanduser()),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many types, for a folder that may be anything
        said = " ".join(str(error).split())[:160]
        fetch = "" if download else "; --download true fetches it from the hub"
        raise ExtractorError(f"{source} is no picture network in safetensors on this machine{fetch} ({said})") from None
    network, loaded = found
    # transformers goes on with random weights in their place
    lacking = {str(name) for name in loaded["missing_keys"]}
    unpooled = any(name.startswith("pooler.") for name in lacking)  # as classifiers are
    clip = hasattr(network, "get_image_features")
    spared = ("text_model.", "text_projection.", "logit_") if clip else ("pooler.",)  # what pictures do without
    if needed := sorted(name for name in lacking if not name.startswith(spared)):
        raise ExtractorError(f"{source} is no whole network: {len(needed)} weights are missing, {needed[0]} for one")
    network = network.to(device).eval().requires_grad_(False)
    config = getattr(network.config, "vision_config", network.config)
    # DINOv2 says 518, at which it was tuned last, and is used at 224 by those who compare pictures with it
    sides = getattr(config, "image_size", 224)
    size = min(int(max(sides) if isinstance(sides, list | tuple) else sides), 224)
    mean, deviation = _normalised(str(Path(source).expanduser()), local, clip)
    shift, scale = (torch.tensor(value, device=device)[:, None, None] for value in (mean, deviation))

    def features(pixels: Tensor) -> Tensor:
        x = _three(pixels).to(device).float() / 255
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        x = (x - shift) / scale
        out = network.get_image_features(pixel_values=x) if clip else network(pixel_values=x)
        if isinstance(out, Tensor):
            return out
        pooled: Tensor | None = None if unpooled else out.pooler_output
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    try:
        features(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    except Exception as error:  # of many types, for a network that may be anything
        said = " ".join(str(error).split())[:160]
        raise ExtractorError(f"{source} makes no features of a picture ({said}): give a network of pictures") from None
    weights = {name: value for name, value in network.state_dict().items() if name not in lacking}
    # what the weights do is told by the rest: names, shapes, settings, and whose code it is
    told = {**network.config.to_dict(), "_name_or_path": None}
    story = json.dumps([version, told, [(name, list(value.shape)) for name, value in weights.items()]], default=str)
    sha256 = _digest([*weights.values(), shift, scale], story)
    # a folder may be called anything: so that none is taken for one of the networks above
    name = f"folder {Path(source).name}" if Path(source).expanduser().is_dir() else source
    return Extractor(name, sha256, f"bicubic {size}, antialiased", features)


def _normalised(source: str, local: bool, clip: bool) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pictures that a network was trained on: as its preprocessor_config.json says.

    Where there is none: those of CLIP, or of ImageNet, on which nearly all others are trained.
    """
    from transformers import ImageProcessingMixin

    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
        mean, deviation = [float(n) for n in told["image_mean"]], [float(n) for n in told["image_std"]]
        if len(mean) == len(deviation) == 3 and min(deviation) > 0:
            return mean, deviation
    except (OSError, KeyError, TypeError, ValueError):
        pass
    if clip:
        return [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _three(pixels: Tensor) -> Tensor:
    """Grey pictures as red, green and blue."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


@contextmanager
def _full() -> Iterator[None]:
    """fp32 that is fp32: on GPUs convolutions would round to TF32's 10 bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def _digest(tensors: list[Tensor], story: str = "") -> str:
    """SHA-256 over a text and the bytes of these tensors, in order."""
    found = hashlib.sha256(story.encode())
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
