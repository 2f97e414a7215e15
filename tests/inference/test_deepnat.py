# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bids_app.inference import deepnat
from bids_app.inference.deepnat import DensePredictor, predict_dense
from bids_app.networks.deepnat import CENTRE, OFFSETS, PATCH, DeepNAT


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(3)
    network = DeepNAT(5)
    with torch.no_grad():
        network(torch.rand(8, 1, PATCH, PATCH, PATCH), torch.randn(8, 6))
        network.heads.weight *= 20  # clear probabilities
    return network.eval()


@pytest.fixture(scope='module')
def volume():
    torch.manual_seed(4)
    shape = (11, 10, 9)
    mask = torch.rand(shape) < 0.7
    mask[:2, :3] = True  # at the border of the array
    return torch.rand(shape), torch.randn(6, *shape), mask


def patch_wise(network, image, coordinates, voxels):
    """Evaluate whole patches, one for each voxel: probabilities (voxels, tasks, classes)."""
    around = functional.pad(image, (CENTRE, PATCH - 1 - CENTRE) * 3)
    found = []
    for some in torch.stack(list(voxels)).split(32):
        patches = [around[tuple(slice(int(n), int(n) + PATCH) for n in voxel)] for voxel in some]
        given = coordinates[(slice(None), *some.T)].T
        with torch.inference_mode():
            found.append(network(torch.stack(patches)[:, None], given).softmax(dim=2))
    return torch.cat(found)


def reference(network, image, coordinates, mask, parities):
    """Mean of the probabilities that reach each voxel, by whole patches."""
    total = torch.zeros(*mask.shape, network.outputs)
    count = torch.zeros(mask.shape)
    grid = torch.stack(torch.meshgrid(*map(torch.arange, mask.shape), indexing='ij'), dim=-1)
    voxels = [v for v in grid.reshape(-1, 3) if tuple((v % 2).tolist()) in parities]
    found = patch_wise(network, image, coordinates, voxels)
    for voxel, probabilities in zip(voxels, found, strict=True):
        for offset, values in zip(OFFSETS, probabilities, strict=False):
            at = tuple((voxel + torch.tensor(offset)).tolist())
            if all(0 <= n < size for n, size in zip(at, mask.shape, strict=True)):
                total[at] += values
                count[at] += 1
    return (total / count[..., None]).movedim(-1, 0), count


def test_dense_is_patch_wise_to_float_precision(network, volume):
    image, coordinates, mask = volume
    wanted, count = reference(network, image, coordinates, mask, deepnat.PARITIES[2])
    assert count.min() >= 1  # two parity classes reach every voxel
    for tile in (None, 6):
        found = predict_dense(image, coordinates, mask, network, tile=tile)
        assert found.std() > 0.1
        torch.testing.assert_close(found[:, mask], wanted[:, mask], rtol=1e-4, atol=1e-5)
        assert (found[0][~mask] == 1).all()
        assert (found[1:, ~mask] == 0).all()


def test_all_parities_of_one_task_are_the_network_at_each_voxel(volume):
    image, coordinates, mask = volume
    torch.manual_seed(5)
    single = DeepNAT(3, tasks=1)
    with torch.no_grad():
        single(torch.rand(4, 1, PATCH, PATCH, PATCH), torch.randn(4, 6))
    single.eval()
    voxels = mask.nonzero()[::40]
    wanted = patch_wise(single, image, coordinates, voxels)[:, 0]
    found = predict_dense(image, coordinates, mask, single, parities=8)
    torch.testing.assert_close(found[(slice(None), *voxels.T)].T, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='8 parities'):
        DensePredictor(single)


def test_one_parity_fills_what_it_does_not_reach(network, volume):
    image, coordinates, mask = volume
    found = predict_dense(image, coordinates, mask, network, parities=1)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(mask.shape))
    both = predict_dense(image, coordinates, mask, network, parities=2)
    even = torch.zeros_like(mask)
    even[::2, ::2, ::2] = mask[::2, ::2, ::2]  # the other class does not reach these
    torch.testing.assert_close(found[:, even], both[:, even])


def test_lack_of_memory_leads_to_smaller_tiles(network, volume, monkeypatch):
    image, coordinates, mask = volume
    predictor = DensePredictor(network)
    run, tried = DensePredictor._run, []

    def scarce(self, device, tile, *volumes):
        tried.append(tile)
        if tile > 64:
            raise MemoryError
        return run(self, device, tile, *volumes)

    monkeypatch.setattr(DensePredictor, '_run', scarce)
    predictor.probabilities(image, coordinates, mask)
    assert tried == [128, 96, 64]
    assert predictor.fallback == 'cpu, tiles of 64 voxels'
    predictor.probabilities(image, coordinates, mask)
    assert tried == [128, 96, 64, 64]
    monkeypatch.setattr(deepnat, 'TILES', (128,))
    with pytest.raises(MemoryError, match='--low-mem'):
        DensePredictor(network).probabilities(image, coordinates, mask)


def test_an_empty_mask_is_background(network, volume):
    image, coordinates, mask = volume
    found = predict_dense(image, coordinates, torch.zeros_like(mask), network)
    assert (found[0] == 1).all()
    assert found[1:].sum() == 0
