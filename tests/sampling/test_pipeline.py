"""LabelPipeline by itself: labels are names as on the command line, and diffusers has nothing to complain about."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler

from flowimg.fields.unet import UNetField, new_unet
from flowimg.sampling.pipeline import SMALL, LabelPipeline, identity, names_in_pipeline, save_pipeline

NUMBERS = ("1", "2", "12")


@pytest.fixture
def piped():
    """`piped(classes)`: a pipeline whose network has three classes, and the labels that its network was given."""

    def piped(classes):
        unet = new_unet(8, 1, num_classes=3, channels=(64,), layers=1, zero_output=False)
        pipeline, seen = LabelPipeline(unet, FlowMatchEulerDiscreteScheduler(), classes), []
        pipeline.set_progress_bar_config(disable=True)
        note = lambda module, args, kwargs: seen.append(kwargs["class_labels"].tolist())  # noqa: E731
        unet.register_forward_pre_hook(note, with_kwargs=True)
        return pipeline, seen

    return piped


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        ("12", [2]), ("1", [0]), (12, [2]), (np.int64(12), [2]), (torch.tensor(2), [1]),
        ([1], [0]), (["1"], [0]), ([1, "2", 12], [0, 1, 2]), (("12", 12), [2, 2]), (range(1, 3), [0, 1]),
        (np.array([1, 12]), [0, 2]), (np.array(["1", "12"]), [0, 2]), (torch.tensor([12, 1]), [2, 0]),
    ],
    ids=repr,
)  # fmt: skip
def test_labels_are_names_and_a_single_one_is_one_picture(labels, numbers, piped):
    pipeline, seen = piped(NUMBERS)
    assert pipeline(labels, num_inference_steps=1, output_type="np").images.shape == (len(numbers), 8, 8, 1)
    assert seen == [numbers]


def test_a_network_of_rectangles_draws_rectangles_also_once_saved(tmp_path):
    unet = new_unet((8, 12), 1, num_classes=3, channels=(64,), layers=1, zero_output=False)
    save_pipeline(tmp_path / "m", UNetField(unet, 3), NUMBERS)
    drawn = []
    for pipeline in (
        LabelPipeline(unet, FlowMatchEulerDiscreteScheduler(), NUMBERS),
        LabelPipeline.from_pretrained(tmp_path / "m"),
    ):
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(3)
        drawn.append(pipeline(["2", "12"], seed, num_inference_steps=2, output_type="np").images)
    assert drawn[0].shape == (2, 8, 12, 1)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    save_pipeline(tmp_path / "plain", UNetField(new_unet((8, 12), 1, channels=(64,), layers=1)), ())
    stock = DDPMPipeline.from_pretrained(tmp_path / "plain")
    stock.set_progress_bar_config(disable=True)
    assert stock(num_inference_steps=2, output_type="np").images.shape == (1, 8, 12, 1)


def test_labels_that_can_be_read_once_are_read_once(piped):
    pipeline, seen = piped(NUMBERS)
    pipeline((label for label in ("2", 12)), num_inference_steps=1)
    assert seen == [[1, 2]]


@pytest.mark.parametrize(
    "labels",
    [
        "21", "3", 0, [0], [1, 0], [-1], [True], [np.True_], torch.tensor([True]), [1.0], [None], [b"1"], [[1, 2]],
        ["1 "], ["01"], torch.tensor(1.5), None,
    ],
    ids=repr,
)  # fmt: skip
def test_a_label_of_no_class_is_refused_and_never_another_class(labels, piped):
    pipeline, seen = piped(NUMBERS)
    with pytest.raises(ValueError, match=r"is not a class: there are .*1") as told:
        pipeline(labels, num_inference_steps=1)
    assert not seen and len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("labels", [[], (), torch.zeros(0, dtype=torch.long), np.array([])], ids=repr)
def test_no_labels_are_refused(labels, piped):
    with pytest.raises(ValueError, match="give at least one class"):
        piped(NUMBERS)[0](labels)


def test_without_names_the_classes_of_the_network_are_called_by_their_number(piped):
    pipeline, seen = piped(())
    pipeline([2, "0"], num_inference_steps=1, guidance_scale=2.0)
    assert seen == [[2, 0], [3, 3]]  # the last embedding is "no class"
    with pytest.raises(ValueError, match="3 is not a class: there are 0, 1, 2"):
        pipeline([3])


@pytest.mark.parametrize("steps", [1, 50])
def test_one_step_is_the_whole_way_whatever_the_scheduler_is_set_for(steps, piped, tmp_path):
    """An earlier folder, for 50 steps, divided by zero in its scheduler: IndexError."""
    unet = piped(NUMBERS)[0].unet
    scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=1 / steps if steps > 1 else None)
    LabelPipeline(unet, scheduler, list(NUMBERS)).save_pretrained(tmp_path / "m")
    pipeline = LabelPipeline.from_pretrained(tmp_path / "m")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline([12], torch.Generator().manual_seed(0), num_inference_steps=1, output_type="np").images
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x_1 = noise - unet(noise, torch.tensor([1000.0]), class_labels=torch.tensor([2])).sample
    np.testing.assert_allclose(drawn, (x_1 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).detach(), atol=1e-6)
    set_for = pipeline.scheduler.config["shift_terminal"]  # as it was, for the next call
    assert set_for == (1 / steps if steps > 1 else None)


def test_diffusers_has_nothing_to_complain_about(tmp_path, monkeypatch):
    from diffusers.pipelines import pipeline_utils

    said = []
    monkeypatch.setattr(pipeline_utils.logger, "warning", lambda *args: said.append(args))
    save_pipeline(tmp_path / "m", UNetField(new_unet(8, 1, num_classes=3, channels=(64,), layers=1), 3), NUMBERS)
    pipeline = LabelPipeline.from_pretrained(tmp_path / "m")
    pipeline.set_progress_bar_config(disable=True)
    pipeline([1], num_inference_steps=2)
    assert said == [] and list(pipeline.config["classes"]) == list(NUMBERS)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_decoder_of_a_dit_changes_nothing(channels):
    before = torch.get_rng_state()
    vae = identity(channels)
    assert torch.equal(torch.get_rng_state(), before)  # a run trains meanwhile, and its dropout draws from there
    x = 3 * torch.randn(2, channels, 9, 9)
    torch.testing.assert_close(vae.decode(x / SMALL).sample, x, atol=2e-6, rtol=0)
    torch.testing.assert_close(vae.encode(x).latents * SMALL, x, atol=2e-6, rtol=0)
    assert vae.config.scaling_factor == SMALL


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["Coat", "Bag"], ["Coat", "Bag"]), (["white shark, great", "umbrella"], ["0", "1"]),
        (["a", " a"], ["0", "1"]), ([" a", "b"], ["a", "b"]), ([], []),
    ],
)  # fmt: skip
def test_a_dit_pipeline_knows_classes_by_names_that_it_does_not_split(classes, names):
    assert names_in_pipeline(classes) == names
