# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from bids_app.inference.context import resample_linear
from bids_app.inference.predictor import Predictor, gaussian_window, pad_to_multiple, tiles


class Pointwise(nn.Module):
    """Local in space, so that tiles and the whole volume must agree exactly."""

    divisor = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)

    def forward(self, x, context=None):
        out = self.conv(x)
        if context is not None:
            out = out + nn.functional.interpolate(context, scale_factor=2)
        return out


class Failing(Pointwise):
    """Pretends that memory runs out above a number of voxels."""

    def __init__(self, limit: int, message: str = 'CUDA out of memory') -> None:
        super().__init__()
        self.limit, self.message = limit, message

    def forward(self, x, context=None):
        if x[0, 0].numel() > self.limit:
            raise RuntimeError(self.message)
        return super().forward(x, context)


def test_tiles_cover_the_volume_at_even_corners():
    seen = torch.zeros(50, 20, 34)
    for corner, size in tiles((50, 20, 34), 24):
        assert all(c % 2 == 0 for c in corner)
        at = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))
        assert seen[at].shape == tuple(size)
        seen[at] += 1
    assert (seen > 0).all()


def test_tiles_equal_the_whole_volume_for_a_local_network():
    network, image, context = Pointwise(), torch.rand(1, 40, 36, 50), torch.rand(3, 20, 18, 25)
    whole = Predictor(network).logits(image, context)
    tiled = Predictor(network, tile=16).logits(image, context)
    torch.testing.assert_close(whole, tiled, rtol=1e-4, atol=1e-5)


def test_out_of_memory_steps_down_the_ladder_and_says_so():
    network = Failing(96**3)
    predictor = Predictor(network)
    image = torch.rand(1, 104, 100, 100)
    result = predictor.logits(image)
    with torch.inference_mode():
        torch.testing.assert_close(result, network.conv(image[None])[0], rtol=1e-4, atol=1e-5)
    assert predictor.fallback == 'cpu, tiles of 96 voxels'


def test_ladder_ends_with_a_clear_error():
    with pytest.raises(MemoryError, match='--low-mem'):
        Predictor(Failing(10)).logits(torch.rand(1, 16, 16, 16))


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match='shape'):
        Predictor(Failing(0, 'bad shape')).logits(torch.rand(1, 8, 8, 8))


def test_gaussian_window_is_symmetric_and_peaks_in_the_middle():
    window = gaussian_window((5, 6, 7))
    torch.testing.assert_close(window, window.flip(0, 1, 2))
    assert window.argmax() in (
        torch.arange(window.numel()).view(5, 6, 7)[2, 2, 3],
        torch.arange(window.numel()).view(5, 6, 7)[2, 3, 3],
    )


def test_padding_goes_to_the_end():
    padded = pad_to_multiple(torch.ones(5, 8, 9), 4)
    assert padded.shape == (8, 8, 12)
    assert padded.sum() == 5 * 8 * 9


def test_linear_resampling_keeps_a_ramp_in_world_coordinates():
    x = torch.arange(10.0) * 3 + 1.5  # world positions
    volume = x[None, :, None, None].expand(1, 10, 4, 4).contiguous()
    out = resample_linear(
        volume, torch.tensor([1.5, 0, 0]), 3.0, torch.tensor([4.0, 0, 0]), 1.0, (20, 4, 4)
    )
    torch.testing.assert_close(out[0, :, 0, 0], torch.arange(20.0) + 4.0)
