# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from bids_app.inference.context import resample_linear
from bids_app.inference.predictor import (
    Predictor,
    gaussian_window,
    out_of_memory,
    pad_to_multiple,
    tiles,
)


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


@pytest.fixture
def gpu(monkeypatch):
    """Let runs on a GPU, which is not there, take place on the CPU; returns what was tried."""
    real, tried = Predictor._run, []

    def run(self, device, tile, image, context):
        tried.append((device, tile))
        return real(self, 'cpu', tile, image, context)

    monkeypatch.setattr(Predictor, '_run', run)
    return tried


LADDER = [('cuda:0', None), ('cuda:0', 128), ('cuda:0', 96), ('cuda:0', 64), ('cpu', 96)]


@pytest.mark.parametrize('rung', range(len(LADDER)))
def test_every_rung_is_tried_in_turn_and_named(gpu, monkeypatch, caplog, rung):
    image, network = torch.rand(1, 136, 20, 18), Pointwise()
    simulated = Predictor._run

    def run(self, device, tile, image, context):
        if LADDER.index((device, tile)) < rung:
            gpu.append((device, tile))
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return simulated(self, device, tile, image, context)

    monkeypatch.setattr(Predictor, '_run', run)
    predictor = Predictor(network, 'cuda:0')
    result = predictor.logits(image)
    assert gpu == LADDER[: rung + 1]
    assert len(caplog.records) == rung
    device, tile = LADDER[rung]
    assert predictor.fallback == (f'{device}, tiles of {tile} voxels' if rung else None)
    with torch.inference_mode():
        torch.testing.assert_close(result, network.conv(image[None])[0], rtol=1e-4, atol=1e-5)
    predictor.logits(image)
    assert gpu[rung + 1 :] == [LADDER[rung]]  # what did not suffice is not tried again


def test_low_memory_starts_further_down(gpu):
    with pytest.raises(MemoryError, match='--low-mem'):
        Predictor(Failing(10), 'cuda:1', tile=64).logits(torch.rand(1, 80, 16, 16))
    assert gpu == [('cuda:1', 64), ('cpu', 64)]


def test_ladder_ends_with_a_clear_error():
    with pytest.raises(MemoryError, match='tried: cpu, whole volume; .*64 voxels.*--low-mem'):
        Predictor(Failing(10)).logits(torch.rand(1, 16, 16, 16))


@pytest.mark.parametrize(
    'message',
    ['CUDA error: out of memory', 'CUDNN_STATUS_ALLOC_FAILED', 'CUBLAS_STATUS_ALLOC_FAILED when',
     "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"],
)  # fmt: skip
def test_ways_in_which_torch_says_that_memory_ran_out(message):
    assert out_of_memory(RuntimeError(message))


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
