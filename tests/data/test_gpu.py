"""Pictures on a GPU, or sent to it from this machine's memory: the same batches. Run with `pytest -m gpu`."""

import pytest
import torch

from flowimg.build.data import build_source
from flowimg.data.prefetch import Prefetch
from flowimg.settings.reading import validate
from flowimg.settings.run import Config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def batches(share, device):
    data = {"kind": "images", "source": "digits", "flip": True, "size": 8, "random_crop": 10, "gpu_share": share}
    return build_source(validate(Config, {"data": data, "field": {"kind": "unet"}}, "test")).load(torch.device(device))


@pytest.mark.parametrize(("share", "where"), [(0.25, "cuda"), (0.0, "cpu")])
def test_where_pictures_lie_changes_nothing(share, where):
    here, there = batches(share, "cpu"), batches(share, "cuda")
    assert there.images.pixels.device.type == where
    ahead = Prefetch(there, [range(32)])
    for step in range(5):
        (x, (labels, _)), (y, (same, _)) = here(step, range(32)), ahead(step, range(32))
        assert y.device.type == same.device.type == "cuda"
        assert torch.equal(x, y.cpu()) and torch.equal(labels, same.cpu())
    assert torch.equal(here.held_out(20)[0], there.held_out(20)[0].cpu())
    ahead.close()
