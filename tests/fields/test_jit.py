import math

import pytest
import torch

from flowimg.fields.jit import Block, JiTField, norm, turned, turns_of
from flowimg.flow.condition import NO_CLASS, Condition

CPU = torch.device("cpu")


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    how = {"channels": 2, "num_classes": 3, "width": 32, "depth": 3, "heads": 2, "zero_output": False} | options
    return JiTField(**how)


def pictures(n=3, shape=(8, 8)):
    return torch.randn(n, 2, *shape, generator=torch.Generator().manual_seed(1))


T = torch.tensor([0.0, 0.37, 1.0])
COND = Condition(torch.tensor([2, NO_CLASS, 0]))


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (16, 8)])
def test_any_rectangle_that_patches_fill_has_a_velocity(shape, patch):
    x = pictures(shape=shape)
    v = tiny(patch=patch)(x, T, COND)
    assert v.shape == x.shape and v.std() > 1e-3


@torch.no_grad()
def test_patches_go_back_to_where_they_came_from():
    """A network whose blocks are the identity sees one patch at a time: only its own place changes."""
    field, x = tiny(depth=1), pictures(1)
    for weight in (field.modulate.weight, field.modulate.bias):
        weight.zero_()
    other = x.clone()
    other[0, :, 2:4, 4:6] += 1
    changed = (field(other, T[:1]) != field(x, T[:1]))[0].any(0)
    assert changed[2:4, 4:6].all() and changed.sum() == 4


@torch.no_grad()
def test_tokens_of_the_class_take_no_patch_with_them():
    fields = [tiny(depth=1, class_tokens=count) for count in (0, 5)]
    for field in fields:
        field.load_state_dict(fields[0].state_dict(), strict=False)
        field.modulate.weight.zero_()
        field.modulate.bias.zero_()
    torch.testing.assert_close(*(field(pictures(), T, COND) for field in fields))


@torch.no_grad()
def test_a_rectangle_has_its_rows_and_columns():
    field, seen = tiny(), []
    field.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    field(pictures(shape=(4, 12)), T, COND)
    assert torch.equal(seen[0], turns_of(2, 6, 8, CPU)) and not torch.equal(seen[0], turns_of(6, 2, 8, CPU))


@torch.no_grad()
def test_turns_are_products_of_complex_numbers_and_scores_depend_on_differences_of_places():
    half, (rows, columns) = 6, (3, 5)
    turns = turns_of(rows, columns, half, CPU)
    assert turns.shape == (15, 6)
    speeds = [10_000 ** (-k / 3) for k in range(3)]
    place = 2 * columns + 4  # row 2, column 4
    torch.testing.assert_close(turns[place], torch.tensor([2 * s for s in speeds] + [4 * s for s in speeds]))
    heads = torch.randn(2, 1, 15, 12, dtype=torch.float64)
    numbers = torch.complex(heads[..., :half], heads[..., half:])
    by_hand = numbers * torch.exp(1j * turns.double())
    torch.testing.assert_close(turned(heads, turns.double()), torch.cat([by_hand.real, by_hand.imag], -1))
    query, key = torch.randn(2, 12)
    q, k = (turned(one.expand(1, 1, 15, 12), turns)[0, 0] for one in (query, key))
    scores = q @ k.T
    torch.testing.assert_close(scores[0, 1], scores[5, 6], atol=1e-4, rtol=1e-4)  # one column to the right
    torch.testing.assert_close(scores[1, 7], scores[7, 13], atol=1e-4, rtol=1e-4)  # a row down, and a column
    assert (scores[0, 1] - scores[1, 0]).abs() > 1e-3


@torch.no_grad()
def test_a_block_is_its_formula():
    torch.manual_seed(3)
    block, h, shared = Block(32, 2, 0.0), torch.randn(2, 15, 32), torch.randn(2, 192)
    block.row.normal_()
    block.queries.normal_()
    block.keys.normal_()
    turns = turns_of(3, 5, 8, CPU)
    m = (shared + block.row).reshape(2, 6, 1, 32).unbind(1)
    rms = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    inside = block.qkv((1 + m[1]) * rms(h) + m[0])
    q, k, v = (part.reshape(2, 15, 2, 16).transpose(1, 2) for part in inside.split(32, -1))
    rotated = []
    for part, scale in ((q, block.queries), (k, block.keys)):
        part = rms(part) * scale
        rotated.append(torch.complex(part[..., :8], part[..., 8:]) * torch.exp(1j * turns))
    scores = (rotated[0] @ rotated[1].mH).real / math.sqrt(16)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 15, 32)
    h_1 = h + m[2] * block.mix(mixed)
    gate, value = block.gate_and_value((1 + m[4]) * rms(h_1) + m[3]).chunk(2, -1)
    expected = h_1 + m[5] * block.down(gate * gate.sigmoid() * value)
    torch.testing.assert_close(block(h, shared, turns), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_new_field_is_the_identity_in_every_block_and_0():
    field, h = tiny(zero_output=True), torch.randn(2, 16, 32)
    turns = turns_of(4, 4, 8, CPU)
    assert all(torch.equal(block(h, torch.zeros(2, 192), turns), h) for block in field.blocks)
    assert (field.modulate(torch.randn(2, 32)) == 0).all() and (field(pictures(), T, COND) == 0).all()


@torch.no_grad()
def test_class_tokens_carry_the_class_from_a_third_of_the_blocks_on():
    field, seen = tiny(class_tokens=5), []
    for block in field.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    v = field(pictures(), T, COND)
    assert [tokens.shape[1] for tokens in seen] == [16, 21, 21] and v.shape == (3, 2, 8, 8)
    by_class = field.embed(torch.tensor([2, 3, 0]))
    own = field.tokens.view(5, 32)
    torch.testing.assert_close(seen[1][:, :5], own + by_class[:, None])
    assert tiny(class_tokens=5, num_classes=0).tokens is None


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 0.94, 0.97, 1.0])
def test_a_network_that_predicts_pictures_gives_the_velocity_towards_them(t):
    x, t_ = pictures(), torch.full((3,), t)
    x_1 = tiny()(x, t_, COND)
    torch.testing.assert_close(tiny(output="x")(x, t_, COND), (x_1 - x) / max(1 - t, 0.05), atol=1e-4, rtol=1e-4)


def gradients(field):
    torch.manual_seed(0)
    field.train()(pictures(), T, COND).square().mean().backward()
    return {name: p.grad for name, p in field.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"class_tokens": 4}])
def test_gradient_checkpointing_changes_memory_and_not_gradients(options):
    runs, frugal = [], tiny(gradient_checkpointing=True, **options)
    frugal.blocks[0].register_forward_pre_hook(lambda *args: runs.append(1))
    expected, ours = gradients(tiny(**options)), gradients(frugal)
    assert len(runs) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, msg=name, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_new_field_does_not_listen_to_augmentation_yet_and_can():
    field, plain, numbers = tiny(numbers={"augmentation": 9}), tiny(), torch.randn(3, 9)
    told = COND._replace(augmentation=numbers)
    torch.testing.assert_close(field(pictures(), T, told), field(pictures(), T, COND))
    assert field.state_dict().keys() - plain.state_dict().keys() == {"augment.weight"}
    field.augment.weight.normal_()
    assert (field(pictures(), T, told) - field(pictures(), T, COND)).abs().max() > 1e-3


def test_a_new_field_learns_to_listen():
    field = tiny(numbers={"augmentation": 9})
    field(pictures(), T, COND._replace(augmentation=torch.randn(3, 9))).square().mean().backward()
    assert (field.augment.weight.grad != 0).any()


def test_vectors_and_ends_are_no_hidden_matrices():
    from flowimg.training.optimisers.muon import hidden_matrices

    hidden = hidden_matrices(tiny(class_tokens=2, numbers={"augmentation": 9}))
    assert {name.split(".")[0] for name in hidden} == {"time", "modulate", "blocks", "last"}
    assert {name.split(".")[2] for name in hidden if name.startswith("blocks")} == {
        "qkv", "mix", "gate_and_value", "down",
    }  # fmt: skip


def test_norm_is_over_the_root_mean_square():
    h = torch.randn(4, 7) * 100
    torch.testing.assert_close(norm(h).square().mean(1), torch.ones(4))
    torch.testing.assert_close(norm(h) * h.square().mean(1, keepdim=True).sqrt(), h)
