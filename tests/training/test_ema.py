import torch
from torch import nn

from flowimg.training.ema import make_ema, update_ema


def test_average_follows_the_closed_form():
    field = nn.Linear(3, 2)
    ema = make_ema(field)
    expected = [p.detach().double().clone() for p in field.parameters()]
    for decay in (0.1, 0.5, 0.9):
        with torch.no_grad():
            for p in field.parameters():
                p.copy_(torch.randn_like(p))
        update_ema(list(ema.parameters()), list(field.parameters()), decay, torch.tensor(0.0))
        expected = [decay * e + (1 - decay) * p.double() for e, p in zip(expected, field.parameters(), strict=True)]
    for average, truth in zip(ema.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), truth, rtol=1e-6, atol=1e-6)


def test_average_is_apart_from_the_field_and_never_trains():
    field = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    field.train()
    ema = make_ema(field)
    assert field.training and not ema.training
    assert not any(p.requires_grad for p in ema.parameters())
    before = [p.clone() for p in field.parameters()]
    update_ema(list(ema.parameters()), list(field.parameters()), 0.0, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(before, field.parameters(), strict=True))
    assert {p.data_ptr() for p in ema.parameters()}.isdisjoint({p.data_ptr() for p in field.parameters()})
