# SPDX-License-Identifier: Apache-2.0
"""Registration of a segmented scan to a template, from files to a :class:`Normalisation`."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_app.errors import ImageError
from bids_app.images.conform import load_array
from bids_app.images.templates import Template
from bids_app.inference.predictor import out_of_memory
from bids_app.registration.affine import register_affine, sample_scan
from bids_app.registration.normalisation import Normalisation, jacobian_determinant
from bids_app.registration.refine import LEVELS, Level, refine
from bids_app.registration.shares import SPACING, Shares, scan_shares, template_shares
from bids_app.registration.velocity import border_window, compose, full_flows, warp

LOGGER = logging.getLogger('anatnet.registration')

METHODS = ('network', 'refined', 'ants')

_SLOPPY_LEVELS = (Level(4, 4, 1.2, 0.6),)
_SYN_ITERATIONS = (40, 20, 0)  # the default of antspyx
_BORDER_MM = 12.0
_TISSUES = ('gm', 'wm', 'csf')


def read_template(template: Template) -> tuple[Shares, np.ndarray]:
    """Read a template as registration sees it.

    Returns
    -------
    Shares
        On the registration grid.
    ndarray, shape (3, x, y, z), float32
        Its probabilities of GM, WM and CSF.
    """
    image = nib.load(template.tissues)
    tissues = np.moveaxis(np.asarray(image.dataobj, dtype=np.float32) / 255, -1, 0)
    labels = np.asarray(nib.load(template.labels).dataobj)
    return template_shares(tissues, labels, image.affine), tissues


def soft_dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the overlap of two maps of shares: twice the sum of the smaller over both sums."""
    total = float(first.sum() + second.sum())
    return 2 * float(np.minimum(first, second).sum()) / total if total else float('nan')


def predict_velocities(
    network: torch.nn.Module,
    scan: torch.Tensor,
    template: torch.Tensor,
    *,
    device: str = 'cpu',
    precision: str = 'float32',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask a registration network for its pair of velocities.

    Parameters
    ----------
    network : torch.nn.Module
        A :class:`bids_app.networks.symnet.SymNet`.
    scan, template : torch.Tensor, shape (1, c, x, y, z)
        Shares on the registration grid; the network sees the first two channels, GM and WM.
    device : str
        Torch device.
    precision : {'float32', 'bfloat16'}
        Numbers inside the network.

    Returns
    -------
    velocity_xy, velocity_yx : torch.Tensor, shape (1, 3, x/4, y/4, z/4)
        In voxels of their grid, zero at its border; on the CPU.
    """
    given = torch.cat([scan[:, :2], template[:, :2]], dim=1).to(device)
    with (
        torch.inference_mode(),
        torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == 'bfloat16'),
    ):
        found = network.to(device)(given).float().cpu()
    shape = tuple(found.shape[2:])
    window = border_window(shape, _BORDER_MM / (SPACING * scan.shape[2] / shape[0]))
    found = found.clone() * window
    return found[:, :3], found[:, 3:]


def normalise(
    scan: Shares,
    template: Shares,
    *,
    space: str,
    method: str = 'refined',
    network: torch.nn.Module | None = None,
    device: str = 'cpu',
    precision: str = 'float32',
    sloppy: bool = False,
) -> Normalisation:
    """Register a scan to a template: affine, then diffeomorphic.

    Parameters
    ----------
    scan, template : Shares
        From :mod:`bids_app.registration.shares`.
    space : str
        Name of the template.
    method : {'network', 'refined', 'ants'}
        Velocities of the network alone, the same after an optimisation on the instance, or SyN
        of ANTs on the tissue maps.
    network : torch.nn.Module, optional
        Needed by ``network``; without it ``refined`` starts from zero.
    device, precision : str
        For the network; the optimisation runs on the device as well, in float32.
    sloppy : bool
        Few iterations, for tests.

    Returns
    -------
    Normalisation

    Raises
    ------
    ValueError
        If the method is unknown or lacks its network.
    """
    if method not in METHODS:
        raise ValueError(f'method must be one of {", ".join(METHODS)}, not {method!r}')
    if method == 'network' and network is None:
        raise ValueError('method "network" needs a network')
    shape = tuple(template.data.shape[1:])
    seconds, started = {}, time.monotonic()

    def lap(name: str) -> None:
        nonlocal started
        now = time.monotonic()
        seconds[f'seconds_{name}'] = round(now - started, 2)
        started = now

    matrix = register_affine(template, scan)
    x = sample_scan(torch.from_numpy(scan.data), scan.affine, matrix, shape, template.affine)[None]
    y = torch.from_numpy(template.data)[None]
    lap('affine')
    if method == 'ants':
        iterations = (5, 0, 0) if sloppy else _SYN_ITERATIONS
        # One image of both tissues, as a T1w without bias field would show them.
        maps = [(0.6 * t[0, 0] + t[0, 1]).numpy() for t in (x, y)]
        forward, backward = _syn(*maps, template.affine, iterations)
        lap('refine')
    else:
        velocities = None
        if network is not None:
            velocities = predict_velocities(network, x, y, device=device, precision=precision)
            lap('network')
        if method == 'refined':
            levels = _SLOPPY_LEVELS if sloppy else LEVELS
            velocities = refine(x.to(device), y.to(device), velocities, levels=levels)
        velocities = (velocity.to(device) for velocity in velocities)
        forward, backward = (flow.cpu() for flow in full_flows(*velocities, shape=shape))
        lap('refine')
    found = Normalisation(
        space,
        matrix,
        np.asarray(template.affine, dtype=float),
        (forward[0] * SPACING).numpy().astype(np.float32),
        (backward[0] * SPACING).numpy().astype(np.float32),
        method,
    )
    found.measures.update(_measures(x, y, forward, backward, found), **seconds)
    return found


def _syn(
    scan: np.ndarray, template: np.ndarray, affine: np.ndarray, iterations: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """SyN as displacements in voxels that vanish at the border."""
    from bids_app.registration.ants_syn import register_syn

    fields = register_syn(scan, template, affine, iterations=iterations)
    window = border_window(scan.shape, _BORDER_MM / SPACING)
    forward, backward = (torch.from_numpy(f)[None] / SPACING * window for f in fields)
    return forward, backward


def _measures(
    x: torch.Tensor,
    y: torch.Tensor,
    forward: torch.Tensor,
    backward: torch.Tensor,
    found: Normalisation,
) -> dict[str, float]:
    """What the registration says of itself."""
    warped = warp(x, forward, 'zeros')
    brain = (y[0, 0] + y[0, 1] > 0.5).numpy()
    error = compose(forward, backward)[0].square().sum(dim=0).sqrt().numpy() * SPACING
    jacobian = jacobian_determinant(found.forward, np.full(3, SPACING))
    low, high = np.percentile(jacobian[brain], [1, 99])
    grey, fixed = warped[0, 0].numpy()[brain], y[0, 0].numpy()[brain]
    values = {
        'affine_dice': soft_dice((x[0, 0] + x[0, 1]).numpy(), (y[0, 0] + y[0, 1]).numpy()),
        'dice_gm': soft_dice(warped[0, 0].numpy(), y[0, 0].numpy()),
        'dice_wm': soft_dice(warped[0, 1].numpy(), y[0, 1].numpy()),
        'correlation_gm': float(np.corrcoef(grey, fixed)[0, 1]),
        'jacobian_min': float(jacobian.min()),
        'jacobian_p1': float(low),
        'jacobian_p99': float(high),
        'jacobian_max': float(jacobian.max()),
        'inverse_error_mm': float(error[brain].mean()),
    }
    return {name: round(value, 4) for name, value in values.items()}


def _load_network(model: Path, device: str, precision: str) -> tuple[torch.nn.Module, str]:
    """Return the network of a model folder and the precision to run it in."""
    from bids_app.inference.device import resolve_precision
    from bids_app.inference.models import resident_networks

    return resident_networks(model)['symnet'], resolve_precision(precision, device)


def normalise_files(
    *,
    gm: Path,
    wm: Path,
    csf: Path,
    labels: Path,
    mask: Path,
    template: Template,
    method: str,
    model: Path | None,
    out_file: Path,
    device: str = 'cpu',
    precision: str = 'auto',
    threads: int | None = None,
    sloppy: bool = False,
) -> dict[str, Any]:
    """Register a segmented scan to a template and save the result.

    Parameters
    ----------
    gm, wm, csf, labels, mask : Path
        Tissue probabilities, structures (FreeSurfer's numbers) and brain mask on one grid.
    template : Template
        From :func:`bids_app.images.templates.find_template`.
    method : {'network', 'refined', 'ants'}
        See :func:`normalise`.
    model : Path or None
        Folder of the registration model; None for ``ants``.
    out_file : Path
        Gets the :class:`Normalisation` (``.npz``).
    device, precision : str
        For the network; out of memory on a GPU falls back to the CPU.
    threads : int, optional
        CPU threads.
    sloppy : bool
        Few iterations, for tests.

    Returns
    -------
    dict
        ``measures``, ``method``, ``space``, ``device``, ``precision`` and ``fallback``.

    Raises
    ------
    ImageError
        If the scan holds no grey or white matter inside its mask.
    """
    if threads:
        torch.set_num_threads(threads)
    image = nib.load(labels)
    inside = load_array(mask)[0] > 0
    tissues = {
        name: load_array(path)[0] * inside
        for name, path in zip(_TISSUES, (gm, wm, csf), strict=True)
    }
    try:
        scan = scan_shares(
            tissues['gm'], tissues['wm'], np.asarray(image.dataobj) * inside, image.affine
        )
    except ValueError as error:
        raise ImageError(f'cannot be registered to {template.space}: {error}') from error
    fixed, fixed_tissues = read_template(template)
    network, used, fallback = None, 'float32', None
    if model is not None and method != 'ants':
        network, used = _load_network(model, device, precision)
    options = {'space': template.space, 'method': method, 'network': network, 'sloppy': sloppy}
    try:
        found = normalise(scan, fixed, device=device, precision=used, **options)
    except (MemoryError, RuntimeError) as error:
        if device == 'cpu' or not out_of_memory(error):
            raise
        LOGGER.warning('out of memory on %s: registration on the CPU', device)
        fallback, device = f'cpu, because {device} was out of memory', 'cpu'
        found = normalise(scan, fixed, device=device, precision=used, **options)
    found.measures['dice_csf'] = _csf_overlap(
        tissues['csf'], image.affine, fixed_tissues[2], found
    )
    found.save(out_file)
    return {
        'measures': found.measures,
        'method': method,
        'space': template.space,
        'device': device,
        'precision': used,
        'fallback': fallback,
    }


def _csf_overlap(
    csf: np.ndarray, affine: np.ndarray, template: np.ndarray, found: Normalisation
) -> float:
    """Overlap of the warped CSF map with the template's; it takes no part in registration."""
    from bids_app.registration.warp import to_template

    warped = to_template(csf, affine, found, found.shape, found.grid_affine)
    return round(soft_dice(warped, template), 4)
