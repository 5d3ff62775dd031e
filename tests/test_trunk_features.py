"""`count_features`: F of whatever a trunk returns; the trunk stays as it was."""

import pytest
import torch
from torch import nn

from pml_s2sd import S2SDEmbedder, count_features


class Returns(nn.Module):
    """What is made of its inputs."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, *args, **kwargs):
        return self.make(*args, **kwargs)


IMAGES = torch.zeros(2, 3, 12, 12)
OUTPUTS = {
    "vectors": (torch.zeros(2, 24), {}),
    "maps": (torch.zeros(2, 24, 5, 5), {}),
    "pooled maps": (torch.zeros(2, 24, 1, 1), {}),
    "channels last": (torch.zeros(2, 5, 5, 24), {}),
    "tokens": (torch.zeros(2, 9, 24), {"tokens": "mean"}),
    "class token": ({"hidden": torch.zeros(2, 9, 24)}, {"field": "hidden", "tokens": "class"}),
    "list": ([torch.zeros(2, 8, 9, 9), torch.zeros(2, 24, 5, 5)], {"field": -1}),
    "half": (torch.zeros(2, 24, dtype=torch.bfloat16), {}),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_features_are_counted_and_an_embedder_takes_them(name):
    output, options = OUTPUTS[name]
    trunk = Returns(lambda images: output)
    assert count_features(trunk, IMAGES, **options) == 24
    assert S2SDEmbedder(24, 4, (6,), **options)(trunk(IMAGES)).features.shape == (2, 24)


def test_the_trunk_stays_as_it_was():
    trunk = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Dropout(0.5)).train()
    trunk[2].eval()
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    assert count_features(trunk, torch.rand(2, 3, 8, 8)) == 7
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())
    assert [part.training for part in trunk.modules()] == [True, True, True, False]
    assert all(p.grad is None for p in trunk.parameters())


def test_examples_are_dicts_and_tuples_too_and_take_the_trunks_dtype():
    def made(ids, pixels):
        assert (ids.dtype, pixels.dtype) == (torch.int64, torch.bfloat16)
        return pixels[:, :5]

    trunk = Returns(made)
    trunk.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    ids, pixels = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 6)
    assert count_features(trunk, {"ids": ids, "pixels": pixels}) == 5
    assert count_features(trunk, (ids, pixels)) == 5


@pytest.mark.parametrize(
    ("output", "options", "error", "words"),
    [
        ({"a": torch.zeros(2, 4)}, {}, TypeError, r"got dict of \['a'\] \(2, 4\); name one that it holds, field=…"),
        ({"a": torch.zeros(2, 4)}, {"field": "b"}, TypeError, "field='b' must name a tensor"),
        (
            torch.zeros(2, 9, 4),
            {},
            ValueError,
            r'from shape \(2, 9, 4\); of token .*say tokens="class" or tokens="mean"',
        ),
        (torch.zeros(2, 5, 5, 5), {}, ValueError, "square images of another size, or in_features yourself"),
        (torch.zeros(2, 4, 5, 6), {}, ValueError, "square images of another size, or in_features yourself"),
        (torch.zeros(2, 4, 5, 6, 7), {}, ValueError, r"expected features \(B, F\), feature maps"),
        (torch.zeros(4), {}, ValueError, r"from shape \(4,\)"),
    ],
)
def test_what_leaves_it_open_is_told(output, options, error, words):
    with pytest.raises(error, match=words):
        count_features(Returns(lambda images: output), IMAGES, **options)
