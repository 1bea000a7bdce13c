"""A small convolutional network that tells the classes of the real pictures apart: the judge of conditional samples.

It is trained anew for each evaluation, from a fixed seed, on the pictures the field was trained on; how often it is
right on pictures that neither saw is to be reported beside what it says of samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 128
LEAST, MOST = 400, 4000
"""Training steps for few pictures, and for very many; between them about four epochs."""


class Classifier(nn.Module):
    """Three convolutions, each halving the size, a mean over the plane, a linear layer: about 100,000 parameters.

    Args:
        channels: Channels of a picture.
        classes: Classes to tell apart.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in (32, 64, 128):
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.MaxPool2d(2, ceil_mode=True)]
            channels = wide
        self.features = nn.Sequential(*layers, nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, shape (B, classes), of pictures in [-1, 1], shape (B, C, H, W)."""
        return self.head(self.features(x).mean(dim=(2, 3)))


def train_classifier(pictures: Tensor, labels: Tensor, classes: int, encode: Callable[[Tensor], Tensor]) -> Classifier:
    """A classifier of these pictures.

    Args:
        pictures: As they are stored, shape (N, C, H, W).
        labels: Shape (N,).
        classes: Number of classes.
        encode: Stored pictures to x in [-1, 1].
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Classifier(pictures.shape[1], classes).to(pictures.device)
    steps = min(max(4 * len(pictures) // BATCH, LEAST), MOST)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(pictures), generator=generator)])
        rows, order = order[:BATCH], order[BATCH:]
        x = encode(pictures.index_select(0, rows))  # brackets are slow on bytes
        loss = F.cross_entropy(model(x), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def agreement(model: Classifier, pictures: Tensor, labels: Tensor) -> float:
    """Share of the pictures, in [-1, 1], whose label the classifier gives."""
    parts = zip(pictures.split(1000), labels.split(1000), strict=True)
    right = [(model(x).argmax(dim=1) == y).float() for x, y in parts]
    return float(torch.cat(right).mean())
