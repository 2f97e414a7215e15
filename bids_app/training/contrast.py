# SPDX-License-Identifier: Apache-2.0
"""Random tissue contrasts: an intensity mean and spread for every label.

The T1w and T2w tables are statistics of real whole-head scans on a scale of 0 to 255. The FLAIR
table holds the order of the tissues that the sequence gives (CSF dark, grey matter a little above
white matter, lesions brightest) with wide ranges. Random contrasts follow SynthSeg (Billot et al.,
Medical Image Analysis 2023). In the first T1w table all grey matter looks alike and each class
varies widely; the second holds what bias-corrected scans at 3 T show, where the hippocampus is
brighter than the cortex and classes vary together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# label values: (mean, spread between scans, spread within the class)
_T1W: dict[tuple[int, ...], tuple[float, float, float]] = {
    (0,): (7, 2, 5),
    (4, 5, 14, 15, 24, 43, 44, 72): (44, 11, 26),
    (2, 41, 85): (160, 22, 16),
    (3, 42): (96, 12, 19),
    (11, 50): (96, 12, 19),
    (17, 53): (96, 12, 19),
    (18, 54): (96, 12, 19),
    (26, 58): (96, 12, 19),
    (7, 46): (136, 13, 15),
    (8, 47): (88, 11, 17),
    (10, 49): (130, 18, 20),
    (12, 51): (124, 16, 14),
    (13, 52): (152, 20, 9),
    (28, 60): (143, 16, 21),
    (16,): (130, 12, 18),
    (25, 57): (116, 15, 19),
    (30, 62): (87, 17, 17),
    (136, 137, 163, 164): (60, 10, 24),
    (502,): (126, 25, 84), (506,): (18, 4, 14), (507,): (94, 9, 49), (508,): (117, 12, 65),
    (509,): (70, 9, 25), (511,): (114, 12, 75), (512,): (68, 11, 36), (514,): (48, 9, 20),
    (515,): (30, 7, 22), (516,): (94, 18, 43), (530,): (144, 16, 45),
}  # fmt: skip

# Median and spread within ten bias-corrected T1w scans of OpenNeuro ds002748 (CC0), scaled so that
# white matter is 160 and the lateral ventricles are 44, as in the table above.
_T1W_CORRECTED: dict[tuple[int, ...], tuple[float, float]] = {
    (2, 41, 85): (160, 10), (3, 42): (103, 14), (17, 53): (119, 13), (18, 54): (116, 11),
    (26, 58): (115, 12), (11, 50): (124, 9), (12, 51): (135, 11), (13, 52): (158, 12),
    (10, 49): (145, 12), (28, 60): (155, 14), (16,): (156, 10), (7, 46): (162, 10),
    (8, 47): (119, 16), (4, 5, 14, 15, 24, 43, 44, 72): (48, 15),
}  # fmt: skip
_CORRECTED_SHARE = 0.6  # of the T1w draws
_GREY_BETWEEN, _CLASS_BETWEEN = 10.0, 6.0  # of all grey matter together, of each class

_T2W: dict[tuple[int, ...], tuple[float, float]] = {
    (2, 41, 85, 7, 46): (72, 12),
    (3, 42, 8, 47): (97, 20),
    (4, 5, 14, 15, 24, 43, 44, 72): (238, 25),
    (16,): (66, 12),
    (10, 49): (67, 9),
    (11, 50): (79, 11),
    (12, 51): (65, 9),
    (13, 52): (37, 9),
    (17, 53): (97, 14),
    (18, 54): (90, 9),
    (26, 58): (81, 9),
    (28, 60): (61, 19),
    (25, 57): (150, 25),
    (30, 62): (180, 30),
    (136, 137, 163, 164): (200, 30),
}

_FLAIR: dict[tuple[int, ...], tuple[float, float]] = {
    (2, 41, 85): (100, 10), (7, 46): (100, 12),
    (3, 42): (125, 16), (8, 47): (115, 16),
    (4, 5, 14, 15, 24, 43, 44, 72): (32, 16),
    (16,): (104, 12), (28, 60): (106, 14),
    (10, 49): (112, 11), (11, 50): (126, 12), (12, 51): (120, 11), (13, 52): (92, 12),
    (17, 53): (136, 14), (18, 54): (136, 12), (26, 58): (128, 12),
    (25, 57): (190, 22),
    (30, 62): (60, 30), (136, 137, 163, 164): (90, 30),
}  # fmt: skip
_TABLES = {'t2w': _T2W, 'flair': _FLAIR}
_FIRST_OUTSIDE = 501  # label values from here on are tissues outside the brain
_FLAIR_BETWEEN = 0.6  # between scans, as a share of the spread within a class


@dataclass(frozen=True)
class Contrast:
    """Intensity statistics of every label: two tensors of shape (labels,), float32."""

    mean: torch.Tensor
    spread: torch.Tensor


def draw_contrast(values: list[int], kind: str, generator: torch.Generator) -> Contrast:
    """Draw the contrast of one image.

    Parameters
    ----------
    values : list of int
        The label values, in the order in which the result is wanted.
    kind : {'t1w', 't2w', 'flair', 'random'}
        ``random`` gives every class any mean and spread.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Contrast
        Means on a scale of about 0 to 255.
    """
    count = len(values)
    mean = torch.rand(count, generator=generator) * 255
    spread = torch.rand(count, generator=generator) * 25
    # Paired labels (left and right) share their statistics.
    groups = {value: group for group in _T1W for value in group}
    first: dict[tuple[int, ...], int] = {}
    for position, value in enumerate(values):
        group = groups.get(value, (value,))
        leader = first.setdefault(group, position)
        mean[position], spread[position] = mean[leader], spread[leader]
    if kind == 'random':
        if torch.rand((), generator=generator) < 0.5:  # air is dark more often than not
            mean[values.index(0)], spread[values.index(0)] = 5 * mean[values.index(0)] / 255, 4
        return Contrast(mean, spread)
    if kind == 't1w':
        # One wide factor for the tissue contrast of the scan as a whole (sequence, field
        # strength), then each class on its own.
        widen = 0.5 + 1.0 * torch.rand((), generator=generator)
        for group, (centre, between, within) in _T1W.items():
            noise = torch.randn((), generator=generator)
            factor = 0.6 + 0.6 * torch.rand((), generator=generator)
            for value in group:
                if value in values:
                    position = values.index(value)
                    mean[position] = centre + widen * between * noise
                    spread[position] = within * factor
        if torch.rand((), generator=generator) < _CORRECTED_SHARE:
            _draw_corrected(values, mean, spread, generator)
        return Contrast(mean.clamp_min(0), spread)
    if kind in _TABLES:
        scale = 1 + 0.1 * torch.randn((), generator=generator)
        share = 1.0 if kind == 't2w' else _FLAIR_BETWEEN
        for group, (centre, within) in _TABLES[kind].items():
            noise = share * torch.randn((), generator=generator)
            for value in group:
                if value in values:
                    position = values.index(value)
                    mean[position] = scale * (centre + within * noise)
                    spread[position] = within
        return Contrast(mean.clamp_min(0), spread)
    raise ValueError(f"contrast must be 't1w', 't2w', 'flair' or 'random', not {kind!r}")


def _draw_corrected(
    values: list[int], mean: torch.Tensor, spread: torch.Tensor, generator: torch.Generator
) -> None:
    """Overwrite the brain's statistics, in place, with those of a bias-corrected T1w scan."""
    grey = _GREY_BETWEEN * torch.randn((), generator=generator)
    factor = 0.8 + 0.8 * torch.rand((), generator=generator)
    for group, (centre, within) in _T1W_CORRECTED.items():
        # What lies between CSF (44) and white matter (160) moves with the grey matter.
        share = 1 - abs(centre - 102) / 58
        shift = share * grey + _CLASS_BETWEEN * torch.randn((), generator=generator)
        for value in group:
            if value in values:
                position = values.index(value)
                mean[position] = centre + shift
                spread[position] = within * factor


def brighten_outside(
    contrast: Contrast,
    values: list[int],
    generator: torch.Generator,
    largest: float | None = None,
) -> Contrast:
    """Return a contrast in which the head around the brain is up to three times as bright.

    Fat without suppression is that bright on spin-echo T1w: then the brain fills the dark third
    of the scale, and orbits, marrow and muscle are as bright as the brain elsewhere.

    Parameters
    ----------
    contrast : Contrast
        Of ``values``.
    values : list of int
        The label values; those from 501 on are outside the brain.
    generator : torch.Generator
        Source of randomness.
    largest : float, optional
        The largest factor; drawn from 1 to 3.2 without it.

    Returns
    -------
    Contrast
        Each label outside the brain is brighter by a factor between 1 and the largest.
    """
    if largest is None:
        largest = 1 + 2.2 * float(torch.rand((), generator=generator))
    mean, spread = contrast.mean.clone(), contrast.spread.clone()
    for position, value in enumerate(values):
        if value >= _FIRST_OUTSIDE:
            factor = largest ** float(torch.rand((), generator=generator))
            mean[position] *= factor
            spread[position] *= factor
    return Contrast(mean, spread)
