"""Networks for features: what they are called, that their weights are checked, and that they see what they should."""

import hashlib

import pytest
import torch

from flowimg.errors import ExtractorError
from flowimg.evaluation import features
from flowimg.evaluation.distances import frechet, moments
from flowimg.evaluation.features import (
    Extractor,
    classifier_features,
    distance_name,
    inception,
    random_convolutions,
    transformer,
)
from flowimg.fields.classifier import Classifier
from flowimg.spaces.pixels import Pixels

CPU = torch.device("cpu")


def pictures(count=6, channels=3, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=g)
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


def unit(pixels):
    """Pictures as an extractor is given them."""
    return Pixels(tuple(pixels.shape[1:])).encode(pixels)


@pytest.mark.parametrize(
    ("distance", "count", "called"),
    [
        ("FID", 50_000, "FID-50k"),
        ("FID", 5000, "FID@5,000"),
        ("FID", 49_999, "FID@49,999"),
        ("FD", 50_000, "FD@50,000"),
    ],
)
def test_only_fid_of_50000_samples_is_called_fid_50k(distance, count, called):
    assert distance_name(Extractor("any", "", "none", lambda x: x, distance), count) == called
    assert distance_name(Extractor("inception-2015", "", "none", lambda x: x), 50_000) == "FD@50,000"


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (3, 5), (1, 2)])
def test_random_convolutions_are_fixed_and_see_pictures_of_any_size(channels, size):
    x = pictures(4, channels, size)
    first, second = (random_convolutions(channels, size, CPU) for _ in range(2))
    assert first.name == "proxy-random" and first.sha256 == second.sha256
    x = unit(x)
    seen = first.features(x)
    assert torch.equal(seen, second.features(x)) and seen.shape[0] == 4 and seen.ndim == 2
    torch.testing.assert_close(first.features(x[2:3]), seen[2:3])  # a picture's features are its own
    assert bool(seen.isfinite().all()) and seen.std(0).max() > 0.01


def test_more_noise_on_pictures_is_farther_away_in_random_convolutions():
    data, samples = pictures(300, 1, 8, 0), pictures(300, 1, 8, 1)
    extractor = random_convolutions(1, 8, CPU)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
    real = moments(extractor.features(unit(data)))
    found = [
        frechet(real, moments(extractor.features(unit((samples + level * noise).clamp(0, 255).to(torch.uint8)))))
        for level in (0, 10, 30, 90)
    ]
    assert found == sorted(found) and found[-1] > 3 * found[0]


def test_features_of_a_classifier_are_what_its_last_layer_sees():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(1, 5).eval()
    x = pictures(3, 1, 8)
    extractor = classifier_features(model, CPU)
    assert extractor.name == "proxy-classifier"
    with torch.no_grad():
        torch.testing.assert_close(model.head(extractor.features(unit(x))), model(x.float() / 127.5 - 1))
    before = extractor.sha256
    with torch.no_grad():
        model.head.bias[0] += 1
    assert classifier_features(model, CPU).sha256 != before


@pytest.fixture(scope="module")
def weights():
    """The weights of a network of Inception's form, drawn at random."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
        original = module.load_state_dict_from_url
        kept = {}

        def instead(url, **options):
            raise LookupError

        module.load_state_dict_from_url = instead
        try:
            module.FeatureExtractorInceptionV3.__init__(network, "inception", ["2048"])
        except LookupError:
            kept = {name: value.clone() for name, value in network.state_dict().items()}
        finally:
            module.load_state_dict_from_url = original
    return kept


@pytest.mark.slow
def test_inception_sees_what_torch_fidelity_sees_grey_pictures_too(weights, tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(weights, tmp_path / "w.pth")
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "w.pth"))
    ours = features.inception_of(weights, "0" * 64, CPU)
    x = pictures(2, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(unit(x)), theirs(x)[0])
        grey = x[:, :1]
        torch.testing.assert_close(ours.features(unit(grey)), theirs(grey.repeat(1, 3, 1, 1))[0])
    assert ours.features(unit(x)).shape == (2, 2048) and ours.distance == "FID"


def test_inception_is_taken_with_the_right_hash_alone(weights, tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    with pytest.raises(ExtractorError, match=r"instead of 6726825d0af5f729"):
        inception(str(path), False, CPU)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION", found[:63] + "x")  # all of it counts
    with pytest.raises(ExtractorError, match="does not hold the weights that define FID"):
        inception(str(path), False, CPU)
    monkeypatch.setattr(features, "INCEPTION", found)
    assert inception(str(path), False, CPU).sha256 == found


def test_inception_is_not_fetched_unasked(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("fetched"))
    with pytest.raises(ExtractorError, match="--download true"):
        inception(None, False, CPU)
    with pytest.raises(ExtractorError, match=r"nowhere\.pth is not a file"):
        inception(str(tmp_path / "nowhere.pth"), True, CPU)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "w.pth"
    torch.save({"a": Evil()}, path)
    monkeypatch.setattr(features, "INCEPTION", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ExtractorError, match="holds no readable weights"):
        inception(str(path), False, CPU)
    assert not (tmp_path / "ran").exists()


def clip_and_dino(folder):
    transformers = pytest.importorskip("transformers")
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = transformers.CLIPConfig(text_config={**text, "vocab_size": 9}, vision_config=vision, projection_dim=16)
    dino = transformers.Dinov2Config(**{**vision, "mlp_ratio": 1})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, network in (("clip", transformers.CLIPModel(clip)), ("dino", transformers.Dinov2Model(dino))):
            network.eval().save_pretrained(folder / name, safe_serialization=True)
    return transformers


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_networks_of_transformers_are_read_from_a_folder(name, tmp_path):
    transformers = clip_and_dino(tmp_path)
    extractor = transformer(str(tmp_path / name), False, CPU)
    assert (extractor.name, extractor.distance) == (
        f"folder {name}",
        "FD",
    ) and extractor.resize == "bicubic 32, antialiased"
    x = pictures(3, 3, 32)  # of the network's own size: nothing is resized
    seen = extractor.features(unit(x))
    network = transformers.AutoModel.from_pretrained(tmp_path / name).eval()
    clip = name == "clip"
    mean = [0.48145466, 0.4578275, 0.40821073] if clip else [0.485, 0.456, 0.406]
    std = [0.26862954, 0.26130258, 0.27577711] if clip else [0.229, 0.224, 0.225]
    values = transformers.CLIPImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=mean, image_std=std
    )([p.permute(1, 2, 0).numpy() for p in x], return_tensors="pt")["pixel_values"]  # fmt: skip
    with torch.no_grad():
        if clip:
            pooled = network.vision_model(values).pooler_output
            wanted = network.visual_projection(pooled)
        else:
            wanted = network(values).pooler_output
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-4)
    assert extractor.features(unit(x[:, :1])).shape == seen.shape  # grey


def test_pictures_are_normalised_as_the_network_says_or_as_its_kind_is(tmp_path):
    transformers = clip_and_dino(tmp_path)
    usual = transformer(str(tmp_path / "dino"), False, CPU)
    told = transformers.CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    told.save_pretrained(tmp_path / "dino")
    found = transformer(str(tmp_path / "dino"), False, CPU)
    x = pictures(3, 3, 32)
    values = told([p.permute(1, 2, 0).numpy() for p in x], return_tensors="pt", do_resize=False, do_center_crop=False)
    with torch.no_grad():
        wanted = transformers.AutoModel.from_pretrained(tmp_path / "dino").eval()(values["pixel_values"]).pooler_output
    torch.testing.assert_close(found(unit(x)), wanted, atol=1e-4, rtol=1e-4)
    assert found.sha256 != usual.sha256 and (found(unit(x)) - usual(unit(x))).abs().max() > 1e-2


def vit(folder, without, **more):
    """A folder of a network of which some weights are missing."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.ViTModel(transformers.ViTConfig(**size, image_size=32, patch_size=8, **more)).eval()
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith(without)}
    network.save_pretrained(folder, state_dict=kept)
    return network


def test_a_network_without_its_pooler_is_seen_by_its_first_token_and_one_without_more_is_refused(tmp_path):
    network = vit(tmp_path / "classifier", "pooler.")
    one, again = (transformer(str(tmp_path / "classifier"), False, CPU) for _ in range(2))
    x = pictures(3, 3, 32)
    assert one.sha256 == again.sha256 and torch.equal(one(unit(x)), again(unit(x)))  # nothing of it is random
    mean, deviation = (torch.tensor(n)[:, None, None] for n in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        wanted = network((x.float() / 255 - mean) / deviation).last_hidden_state[:, 0]
    torch.testing.assert_close(one(unit(x)), wanted, atol=1e-4, rtol=1e-4)
    vit(tmp_path / "broken", "layernorm.")
    with pytest.raises(ExtractorError, match=r"is incomplete: 2 weights are missing, among them layernorm\.bias"):
        transformer(str(tmp_path / "broken"), False, CPU)


def test_of_clip_only_what_sees_pictures_is_needed(tmp_path):
    transformers = clip_and_dino(tmp_path)
    network = transformers.CLIPModel.from_pretrained(tmp_path / "clip")
    wanted, x = transformer(str(tmp_path / "clip"), False, CPU), pictures(3, 3, 32)
    for without in ("text_", "visual_"):
        kept = {name: value for name, value in network.state_dict().items() if not name.startswith(without)}
        network.save_pretrained(tmp_path / without / "clip", state_dict=kept)
    assert torch.equal(transformer(str(tmp_path / "text_" / "clip"), False, CPU)(unit(x)), wanted(unit(x)))
    with pytest.raises(ExtractorError, match=r"1 weights are missing, among them visual_projection\.weight"):
        transformer(str(tmp_path / "visual_" / "clip"), False, CPU)


def test_the_same_weights_in_another_network_are_another_network(tmp_path):
    found = []
    for act in ("gelu", "relu"):
        vit(tmp_path / act / "net", "none", hidden_act=act)
        found.append(transformer(str(tmp_path / act / "net"), False, CPU))
    assert found[0].name == found[1].name and found[0].sha256 != found[1].sha256


def test_what_is_no_network_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExtractorError, match=r"there is no picture network in safetensors at .* on this machine"):
        transformer(str(tmp_path), False, CPU)
    with pytest.raises(ExtractorError, match=r"config\.json is a file: give the folder that holds it"):
        transformer(str(tmp_path / "config.json"), False, CPU)
