import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import Attention

from flowimg.fields.unet import UNetField, new_unet, unet_problem
from flowimg.flow.condition import NO_CLASS, Condition
from flowimg.flow.solvers import EULER, integrate
from flowimg.flow.times import uniform_grid


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    checkpointing = options.pop("gradient_checkpointing", False)
    numbers = options.pop("numbers", {})
    options = {"size": 8, "image_channels": 1, "channels": (32, 64), "layers": 1, "zero_output": False} | options
    return UNetField(new_unet(**options), options.get("num_classes", 0), checkpointing, numbers)


def pictures(n=3, channels=1, size=8):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 0.25, 0.37, 1.0])
def test_velocity_is_minus_the_unet_at_diffusers_timestep(t):
    field, x = tiny().eval(), pictures()
    by_hand = field.unet(x, torch.tensor([1000 * (1 - t)] * 3)).sample
    torch.testing.assert_close(field(x, torch.full((3,), t)), -by_hand)
    assert by_hand.abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_euler_walks_in_step_with_diffusers_scheduler(num_steps):
    field, x = tiny().eval(), pictures()
    scheduler = FlowMatchEulerDiscreteScheduler(shift_terminal=1 / num_steps if num_steps > 1 else None)
    scheduler.set_timesteps(num_steps)
    ours = integrate(field, x, uniform_grid(num_steps), EULER, trajectory=True)
    for k, timestep in enumerate(scheduler.timesteps):
        output = field.unet(x, timestep.float()).sample
        x = scheduler.step(output, timestep, x).prev_sample
        torch.testing.assert_close(ours.trajectory[k + 1], x, atol=1e-4, rtol=1e-4)
    assert (ours.x - ours.trajectory[0]).abs().max() > 0.1


@torch.no_grad()
def test_unconditional_unet_is_a_stock_unet():
    # its weights fit a UNet2DModel built from its own config and nothing else: what DDPMPipeline loads
    from diffusers import UNet2DModel

    field, x = tiny().eval(), pictures()
    stock = UNet2DModel.from_config(dict(field.unet.config)).eval()
    stock.load_state_dict(field.unet.state_dict())
    assert torch.equal(stock(x, torch.tensor([400.0])).sample, field.unet(x, torch.tensor([400.0])).sample)
    assert stock.class_embedding is None


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_count_the_residual_blocks_of_a_level(layers):
    unet = tiny(layers=layers).unet
    assert [len(block.resnets) for block in unet.down_blocks] == [layers, layers]


def gradients(field, dropout_seed=0):
    torch.manual_seed(dropout_seed)
    field.train()(pictures(), torch.tensor([0.1, 0.5, 0.9])).square().mean().backward()
    return {name: p.grad for name, p in field.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_memory_and_not_gradients(dropout):
    plain, frugal = tiny(dropout=dropout), tiny(dropout=dropout, gradient_checkpointing=True)
    runs = []
    frugal.unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *args: runs.append(1))
    expected, ours = gradients(plain), gradients(frugal)
    assert len(runs) == 2  # once forwards, once again on the way back
    assert expected.keys() == ours.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)


FITTING = [
    (8, (64,), ()),
    (8, (32, 64), ()),
    (8, (32, 64), (4,)),
    (8, (64, 128), (8, 4)),
    (12, (32, 32, 64), (3,)),
    (8, (32, 32, 32, 64), (1,)),
    ((8, 12), (32, 64), (4,)),
    ((12, 8), (64, 64), (8, 4)),
]


@torch.no_grad()
@pytest.mark.parametrize(("size", "channels", "attention"), FITTING)
def test_whatever_is_said_to_fit_is_built_and_runs(size, channels, attention):
    assert unet_problem(size, channels, attention) is None
    field = tiny(size=size, channels=channels, attention=attention, image_channels=3).eval()
    seen = set()
    for module in field.modules():
        if isinstance(module, Attention):
            assert module.inner_dim // module.heads == 64  # channels a head
            module.register_forward_hook(lambda module, args, out: seen.add(min(args[0].shape[-2:])))
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, 3, height, width)
    assert x.shape == (2, 3, height, width) and field(x, torch.rand(2)).shape == x.shape
    # self-attention at the sizes named and in the middle, which has the size of the last level
    assert seen == {*attention, min(height, width) >> (len(channels) - 1)}
    assert field.unet.config.sample_size == size


MISFITS = [
    # 28 pixels halve to 14 and 7, and no further
    (28, (32, 32, 32, 64), (), ["28 pixels", "3 times", "4 levels", "multiple of 8", "fewer levels"]),
    (9, (32, 64), (), ["9 pixels", "1 times", "multiple of 2"]),
    ((8, 10), (32, 32, 64), (), ["10 x 8 pixels", "2 times", "multiples of 4"]),
    (8, (48, 64), (), ["field.channels [48, 64]", "multiples of 32"]),
    (8, (16, 64), (), ["field.channels [16, 64]", "multiples of 32"]),
    (8, (32, 64), (16,), ["field.attention", "size 16", "[8, 4]"]),
    (8, (32, 64), (4, 2), ["field.attention", "size 2", "[8, 4]"]),
    (8, (64, 32), (), ["multiples of 64", "the last one", "[64, 32]"]),
    (8, (64, 96), (), ["multiples of 64", "[64, 96]"]),
    (8, (32, 64), (8,), ["multiples of 64", "attention", "[32, 64]"]),
]


@pytest.mark.parametrize(("size", "channels", "attention", "words"), MISFITS)
def test_what_does_not_fit_is_one_sentence(size, channels, attention, words):
    problem = unet_problem(size, channels, attention)
    assert all(word in problem for word in words), problem
    assert "\n" not in problem
    with pytest.raises(ValueError, match=r"channels|attention") as error:
        tiny(size=size, channels=channels, attention=attention)
    assert str(error.value) == problem


def test_digits_at_28_pixels_fit_three_levels():
    assert unet_problem(28, (32, 64, 64), (14, 7)) is None
    assert unet_problem(32, (32, 32, 64, 64), (8,)) is None


# --- scale and shift -------------------------------------------------------------------------------------------------


def test_scale_and_shift_widens_each_time_projection_and_nothing_else():
    plain, scaled = tiny(num_classes=2).unet.state_dict(), tiny(num_classes=2, scale_shift=True).unet.state_dict()
    assert plain.keys() == scaled.keys()  # the norm of the attention in the middle among them
    wider = {name for name in plain if plain[name].shape != scaled[name].shape}
    assert wider == {name for name in plain if "time_emb_proj" in name}
    for name in wider:
        assert scaled[name].shape == (2 * len(plain[name]), *plain[name].shape[1:])


@torch.no_grad()
def test_scale_and_shift_is_norm_times_one_plus_scale_plus_shift():
    block = tiny(scale_shift=True).eval().unet.down_blocks[0].resnets[0]
    x, embedding = torch.randn(2, 32, 8, 8), torch.randn(2, 128)
    scale, shift = block.time_emb_proj(embedding.sigmoid() * embedding)[:, :, None, None].chunk(2, dim=1)
    silu = torch.nn.functional.silu
    h = block.norm2(block.conv1(silu(block.norm1(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, embedding), x + block.conv2(silu(h)))


@torch.no_grad()
def test_scale_and_shift_loads_as_a_stock_unet(tmp_path):
    from diffusers import UNet2DModel

    field, x = tiny(scale_shift=True).eval(), pictures()
    field.unet.save_pretrained(tmp_path)
    stock = UNet2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(stock(x, torch.tensor([400.0])).sample, field.unet(x, torch.tensor([400.0])).sample)


# --- what a field is told of an augmentation -------------------------------------------------------------------------


def told(n=3, labels=None):
    return Condition(labels, torch.randn(n, 9, generator=torch.Generator().manual_seed(4)))


def learned(**options):
    """A field that has learned to listen."""
    field = tiny(numbers={"augmentation": 9}, **options).eval()
    torch.nn.init.normal_(field.augment.weight, generator=torch.Generator().manual_seed(5))
    return field


@torch.no_grad()
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, NO_CLASS])])
def test_pictures_as_they_are_are_those_of_the_stock_network_bit_for_bit(labels):
    field, x, t = learned(num_classes=0 if labels is None else 2), pictures(), torch.tensor([0.1, 0.5, 0.9])
    rows = None if labels is None else torch.tensor([0, 1, 2])
    stock = -field.unet(x, 1000 * (1 - t), class_labels=rows).sample
    assert torch.equal(field(x, t, Condition(labels, torch.zeros(3, 9))), stock)
    assert torch.equal(field(x, t, Condition(labels)), stock)
    assert (field(x, t, told(labels=labels)) - stock).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(field(x, t, Condition(labels)), stock)  # nothing of a call is left behind


@torch.no_grad()
def test_numbers_add_to_the_time_embedding():
    field, x, t, cond = learned(), pictures(), torch.tensor([0.1, 0.5, 0.9]), told()
    unet = field.unet
    embedding = unet.time_embedding(unet.time_proj(1000 * (1 - t)))
    more = cond.augmentation @ field.augment.weight.T
    # a network whose embedding is constant, by its last bias
    expected = []
    for row in range(3):
        by_hand = tiny().eval()
        torch.nn.init.zeros_(by_hand.unet.time_embedding.linear_2.weight)
        by_hand.unet.time_embedding.linear_2.bias.copy_((embedding + more)[row])
        expected.append(by_hand(x[row : row + 1], t[:1]))
    torch.testing.assert_close(field(x, t, cond), torch.cat(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_new_field_does_not_listen_yet_and_its_network_is_that_of_a_field_without():
    plain, ours = tiny(), tiny(numbers={"augmentation": 9})
    assert plain.augment is None and ours.state_dict().keys() - plain.state_dict().keys() == {"augment.weight"}
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in plain.state_dict().items())
    x, t = pictures(), torch.rand(3)
    assert torch.equal(ours.eval()(x, t, told()), plain.eval()(x, t))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_new_field_learns_to_listen(checkpointing):
    field, cond = tiny(numbers={"augmentation": 9}, gradient_checkpointing=checkpointing), told()
    cond.augmentation[:, 3] = 0  # nobody was told this one
    field.train()(pictures(), torch.tensor([0.1, 0.5, 0.9]), cond).square().mean().backward()
    assert field.augment.weight.grad[:, [0, 1, 2, *range(4, 9)]].abs().amax(0).min() > 0
    assert (field.augment.weight.grad[:, 3] == 0).all()


def test_a_batch_of_pictures_as_they_are_gives_every_parameter_a_gradient():
    # processes wait for each other's gradients, whatever their pictures
    field = tiny(numbers={"augmentation": 9})
    field(pictures(), torch.rand(3), Condition(None, torch.zeros(3, 9))).square().mean().backward()
    assert all(p.grad is not None for p in field.parameters())
