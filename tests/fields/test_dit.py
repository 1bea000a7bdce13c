import pytest
import torch
from diffusers import DiTTransformer2DModel

from flowimg.fields.dit import FREE, DiTField, dit_problem, new_dit
from flowimg.flow.condition import NO_CLASS, Condition


def tiny(seed=0, classes=3, predicts="v", checkpointing=False, **options):
    torch.manual_seed(seed)
    how = {"shape": (1, 8, 8), "width": 32, "depth": 2, "heads": 2, "zero_output": False} | options
    return DiTField(new_dit(**how), classes, checkpointing, predicts)


def pictures(n=3, channels=1):
    return torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(1))


T = torch.tensor([0.0, 0.37, 1.0])
LABELS = torch.tensor([2, NO_CLASS, 0])


@torch.no_grad()
def test_velocity_is_minus_the_network_at_diffusers_timestep_and_class():
    field, x = tiny().eval(), pictures()
    timestep = torch.tensor([1000.0, 630.0, 0.0])
    by_hand = field.transformer(x, timestep, class_labels=torch.tensor([2, FREE, 0])).sample
    torch.testing.assert_close(field(x, T, Condition(LABELS)), -by_hand)
    free = field.transformer(x, timestep, class_labels=torch.tensor([FREE] * 3)).sample
    torch.testing.assert_close(field(x, T), -free)
    assert by_hand.abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("t", [0.0, 0.5, 0.94, 0.96, 1.0])
def test_a_network_that_predicts_pictures_gives_the_velocity_towards_them(t):
    field, x = tiny(predicts="x").eval(), pictures()
    x_1 = field.transformer(x, torch.full((3,), 1000 * (1 - t)), class_labels=torch.tensor([2, FREE, 0])).sample
    expected = (x_1 - x) / max(1 - t, 0.05)
    torch.testing.assert_close(field(x, torch.full((3,), t), Condition(LABELS)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_blocks_drop_no_labels_of_their_own():
    field = tiny().train()
    x, t, cond = pictures(64), torch.rand(64), Condition(torch.zeros(64, dtype=torch.long))
    assert torch.equal(field(x, t, cond), field(x, t, cond))
    assert torch.equal(field(x, t, cond), field.eval()(x, t, cond))


def gradients(field):
    torch.manual_seed(0)
    field.train()(pictures(), torch.tensor([0.1, 0.5, 0.9]), Condition(LABELS)).square().mean().backward()
    return {name: p.grad for name, p in field.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_memory_and_not_gradients(dropout):
    runs, frugal = [], tiny(dropout=dropout, checkpointing=True)
    frugal.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *args: runs.append(1))
    expected, ours = gradients(tiny(dropout=dropout)), gradients(frugal)
    assert len(runs) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, msg=name, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_its_weights_are_those_of_a_stock_network():
    field, x = tiny().eval(), pictures()
    stock = DiTTransformer2DModel.from_config(dict(field.transformer.config)).eval()
    stock.load_state_dict(field.transformer.state_dict())
    cond = torch.tensor([2, FREE, 0])
    assert torch.equal(stock(x, 1000 * (1 - T), class_labels=cond).sample, -field(x, T, Condition(LABELS)))


def test_the_first_block_is_gathered_with_the_end_that_uses_its_embeddings():
    field = tiny(depth=3)
    gathered = [field.get_submodule(name) for name in field.gathered]
    assert gathered == [*field.transformer.transformer_blocks][1:]


def test_tables_of_classes_and_the_ends_are_no_hidden_matrices():
    from flowimg.training.optimisers.muon import hidden_matrices

    hidden = hidden_matrices(tiny())
    assert not [name for name in hidden if "embedding_table" in name or "pos_embed" in name or "proj_out_2" in name]
    assert {"transformer.transformer_blocks.1.attn1.to_q.weight", "transformer.proj_out_1.weight"} <= hidden


@pytest.mark.parametrize(
    ("shapes", "patch", "classes", "words"),
    [
        ([(1, 8, 12)], 2, 0, "draws squares only, and there are pictures of 12 x 8: use field.kind jit or unet"),
        ([(1, 8, 8), (1, 16, 16)], 2, 0, "draws one size only, and there are pictures of 16 x 16"),
        ([(1, 8, 8)], 2, 1001, "knows 1,000 classes at most, and the data have 1,001"),
        (
            [(1, 9, 9)],
            2,
            0,
            "pictures of 9 x 9 pixels cannot be cut into patches of field.patch 2: give data.size a multiple",
        ),
        ([(1, 8, 8)], 2, 1000, None),
    ],
)
def test_what_does_not_fit_is_one_sentence(shapes, patch, classes, words):
    problem = dit_problem(shapes, patch, classes)
    assert problem is None if words is None else words in problem
