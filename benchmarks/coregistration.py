# SPDX-License-Identifier: Apache-2.0
"""Known displacements of T2w and FLAIR, recovered: AnatNet's rigid registration and antspyx.

    python benchmarks/coregistration.py --real DATASET --maps FOLDER [--draws 40]
        [--methods anatnet ants] [--ants-every 1] [--no-masks]
        [--out benchmarks/coregistration.json]

Every draw turns the head by up to 20 degrees about any axis and shifts it by up to 20 mm.

``synthetic``: a T1w of 1 mm and a T2w or FLAIR are painted from a label map of the whole head
(FOLDER/*.nii.gz); the second one is sampled with slices of 3 to 6 mm in any orientation, a few
degrees oblique, after the head moved. The truth is exact.

``real``: T2w and FLAIR against the T1w of the sessions of DATASET; the header of the T2w or FLAIR
is displaced. The truth is the displacement after a reference alignment, which is the mean of what
both methods find without displacement, or what the first one finds if they are over 1 mm apart.

Brains are compared inside their masks: those of the label maps, and those of the coarse network
of the default model for real scans. antspyx runs ``Rigid`` with its defaults and the same masks on
one thread (set ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1), as ours does; it takes seven times as
long, and over thirty times without masks, which is why --ants-every leaves draws out.

An error is the mean over the brain of the distance between where a point of the T1w should go and
where it goes, in mm, and the angle of the rotation that is left. A draw counts as recovered
within 1 mm and 1 degree. The summary is printed, and kept in --out with all draws.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from bids_app.bids.files import atomic_write_text
from bids_app.images.grids import voxel_sizes
from bids_app.images.resample import resample_to
from bids_app.registration.rigid import register_rigid

LIMIT_MM, LIMIT_DEGREES = 1.0, 1.0
THICKNESSES = (3.0, 4.0, 5.0, 6.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--real', type=Path, help='BIDS data set with T1w and T2w or FLAIR')
    parser.add_argument('--maps', type=Path, help='folder of label maps of whole heads')
    parser.add_argument('--draws', type=int, default=40)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--ants-every', type=int, default=1, help='draws from one with antspyx')
    parser.add_argument('--model', default='brain', help='model that finds the brain')
    parser.add_argument('--no-masks', action='store_true', help='register whole heads')
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    summary = {'masks': not options.no_masks, 'ants_every': options.ants_every}
    sources = {}
    if options.maps:
        sources['synthetic'] = synthetic_cases(options.maps, options.draws)
    if options.real:
        sources['real'] = real_cases(options, summary)
    for source, cases in sources.items():
        draws = []
        for number, case in enumerate(cases):
            methods = [
                method for method in options.methods
                if method != 'ants' or number % options.ants_every == 0
            ]  # fmt: skip
            draws.append(run(case, methods, not options.no_masks))
            print(json.dumps(draws[-1]), flush=True)
        summary[source] = {
            **{
                method: summed_up([draw[method] for draw in draws if method in draw])
                for method in options.methods
            },
            'draws': draws,
        }
    if options.out:
        atomic_write_text(options.out, json.dumps(summary, indent=1) + '\n')
    for source in sources:
        print(json.dumps({source: {m: summary[source][m] for m in options.methods}}, indent=1))


def run(case: Case, methods: list[str], masked: bool) -> dict:
    """Register a case by some methods."""
    before = error(np.eye(4), case.truth, case.points)
    out = {'case': case.name, 'off_mm': before[0], 'off_degrees': before[1]}
    for method in methods:
        started = time.monotonic(), time.process_time()
        matrix, measures = METHODS[method](case, masked)
        spent = time.monotonic() - started[0], time.process_time() - started[1]
        found = error(matrix, case.truth, case.points)
        out[method] = {
            'mm': found[0],
            'degrees': found[1],
            'seconds': round(spent[0], 2),
            'cpu_seconds': round(spent[1], 2),
            **{name: measures[name] for name in ('start', 'dice') if name in measures},
        }
    return out


def summed_up(found: list[dict]) -> dict:
    """Sum up the draws of a method."""
    mm, degrees, cpu = (
        np.array([one[name] for one in found]) for name in ('mm', 'degrees', 'cpu_seconds')
    )
    recovered = (mm <= LIMIT_MM) & (degrees <= LIMIT_DEGREES)
    return {
        'draws': len(found),
        'recovered': round(float(recovered.mean()), 3),
        'median_mm': round(float(np.median(mm)), 3),
        'worst_mm': round(float(mm.max()), 3),
        'median_degrees': round(float(np.median(degrees)), 3),
        'worst_degrees': round(float(degrees.max()), 3),
        'median_cpu_seconds': round(float(np.median(cpu)), 2),
    }


def anatnet(case: Case, masked: bool) -> tuple[np.ndarray, dict]:
    masks = dict(zip(('fixed_mask', 'moving_mask'), case.masks, strict=True)) if masked else {}
    return register_rigid(*case.fixed, *case.moving, **masks)


def ants_rigid(case: Case, masked: bool) -> tuple[np.ndarray, dict]:
    """Rigid registration of antspyx with its defaults (Mattes' mutual information)."""
    import ants

    options = {}
    if masked:
        options['mask'] = ants_image(case.masks[0].astype(np.float32), case.fixed[1])
        options['moving_mask'] = ants_image(case.masks[1].astype(np.float32), case.moving[1])
        options['mask_all_stages'] = True
    found = ants.registration(
        ants_image(*case.fixed), ants_image(*case.moving), type_of_transform='Rigid', **options
    )
    transform = ants.read_transform(found['fwdtransforms'][0])
    # Where a transform carries four points says which map it is.
    points = np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]], dtype=float)
    lps = np.array([-1.0, -1.0, 1.0])
    moved = lps * [ants.apply_ants_transform_to_point(transform, tuple(p)) for p in points * lps]
    matrix = np.eye(4)
    matrix[:3, :3] = (moved[1:] - moved[0]).T / 100
    matrix[:3, 3] = moved[0]
    for path in {*found['fwdtransforms'], *found['invtransforms']}:
        Path(path).unlink(missing_ok=True)
    return matrix, {}


def ants_image(data: np.ndarray, affine: np.ndarray):
    import ants

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sizes = voxel_sizes(affine)
    return ants.from_numpy(
        np.ascontiguousarray(data, dtype=np.float32), origin=tuple(lps[:3, 3]),
        spacing=tuple(sizes), direction=lps[:3, :3] / sizes,
    )  # fmt: skip


METHODS = {'anatnet': anatnet, 'ants': ants_rigid}


def displacement(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """Draw a rigid map, up to 20 degrees about a centre and then up to 20 mm."""
    axis, way = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(0, 20)) * axis).as_matrix()
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + rng.uniform(0, 20) * way
    return matrix


def error(found: np.ndarray, truth: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Return mean distance (mm) over points (n, 3) and angle (degrees) between two rigid maps."""
    apart = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    rest = Rotation.from_matrix(found[:3, :3] @ truth[:3, :3].T).magnitude()
    return round(float(np.linalg.norm(apart, axis=1).mean()), 3), round(float(np.degrees(rest)), 3)


def brain_points(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return world coordinates of every 500th voxel of a mask."""
    return np.argwhere(mask)[::500] @ affine[:3, :3].T + affine[:3, 3]


@dataclass(frozen=True)
class Case:
    """A T1w, another contrast, and the true map from the world of the first to the second."""

    name: str
    fixed: tuple[np.ndarray, np.ndarray]
    moving: tuple[np.ndarray, np.ndarray]
    truth: np.ndarray
    points: np.ndarray
    masks: tuple[np.ndarray, np.ndarray]


def paint(path: Path, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint a head; return the image and its brain."""
    from bids_app.training.synthetic_scans import synthetic_scan

    image, labels = synthetic_scan(path, kind, seed)
    return image, labels > 0


def synthetic_cases(folder: Path, draws: int):
    """Yield cases with an exact truth."""
    paths = sorted(folder.glob('*.nii.gz'))
    per_map = 10
    for number in range(draws):
        rng = np.random.default_rng(1000 + number)
        path = paths[(number // per_map) * 7 % len(paths)]
        if number % per_map == 0:
            fixed, brain = paint(path, 't1w', 2 * number)
            others = {kind: paint(path, kind, 2 * number + 1)[0] for kind in ('t2w', 'flair')}
            affine = np.eye(4)
            affine[:3, 3] = -(np.array(fixed.shape) - 1) / 2
            points = brain_points(brain, affine)
        kind = ('t2w', 'flair')[number % 2]
        truth = displacement(rng, points.mean(axis=0))
        thickness = float(rng.choice(THICKNESSES))
        moving, moving_mask = slices(others[kind], brain, affine, truth, thickness, points, rng)
        yield Case(
            f'{path.name.partition(".")[0]} {kind} {thickness:g} mm',
            (fixed, affine), moving, truth, points, (brain, moving_mask),
        )  # fmt: skip


def slices(image, brain, affine, truth, thickness, points, rng):
    """Sample a moved head in thick slices; return image and affine, and the brain's mask."""
    plane = rng.uniform(0.6, 1.0)
    order = np.roll(np.eye(3), int(rng.integers(3)), axis=1)  # which axis the slices cut
    tilt = Rotation.from_rotvec(np.radians(rng.uniform(-8, 8, 3))).as_matrix()
    directions = tilt @ order * rng.choice([-1, 1], 3)
    sizes = np.array([plane, plane, thickness])
    shape = np.array([int(230 / plane), int(230 / plane), int(np.ceil(180 / thickness))])
    grid = np.eye(4)
    grid[:3, :3] = directions * sizes
    # The operator centres the slices on the head as it lies, more or less.
    centre = truth[:3, :3] @ points.mean(axis=0) + truth[:3, 3] + rng.uniform(-8, 8, 3)
    grid[:3, 3] = centre - grid[:3, :3] @ ((shape - 1) / 2)
    # A slice is the mean of sub-slices of about 1 mm, as the head's own grid.
    parts = int(round(thickness))
    sub = grid.copy()
    sub[:3, 2] /= parts
    sub[:3, 3] -= sub[:3, 2] * (parts - 1) / 2
    to_head = np.linalg.inv(affine) @ np.linalg.inv(truth)
    fine = affine_transform(
        image, (to_head @ sub)[:3, :3], (to_head @ sub)[:3, 3],
        (shape[0], shape[1], shape[2] * parts), order=1, mode='constant', output=np.float32,
    )  # fmt: skip
    head = fine.reshape(*shape[:2], shape[2], parts).mean(axis=3)
    mask = affine_transform(
        brain.astype(np.uint8), (to_head @ grid)[:3, :3], (to_head @ grid)[:3, 3], tuple(shape),
        order=0, mode='constant',
    )  # fmt: skip
    noise = rng.standard_normal((2, *shape)).astype(np.float32) * 0.02 * float(head.max())
    bias = gaussian_filter(rng.standard_normal((6, 6, 6)), 1.0)
    field = resample_to(
        np.exp(0.3 * bias / np.abs(bias).max()).astype(np.float32),
        np.diag([*(shape * 1.01 / 5), 1.0]), shape, np.eye(4), outside='edge',
    )  # fmt: skip
    return (np.hypot(head * field + noise[0], noise[1]), grid), mask > 0


def real_cases(options: argparse.Namespace, summary: dict):
    """Yield cases from real sessions; `summary` gets their reference alignments."""
    pairs, draws = [], options.draws
    for t1w in sorted(options.real.glob('sub-*/**/anat/*_T1w.nii.gz')):
        for suffix in ('T2w', 'FLAIR'):
            other = t1w.with_name(t1w.name.replace('T1w', suffix))
            if other.is_file():
                pairs.append((t1w, other))
    for number in range(draws):
        rng = np.random.default_rng(2000 + number)
        t1w, other = pairs[number * len(pairs) // draws]
        if number == 0 or pairs[(number - 1) * len(pairs) // draws] != (t1w, other):
            fixed, moving = load(t1w), load(other)
            masks = brain_mask(t1w, options.model), brain_mask(other, options.model)
            points = brain_points(masks[0], fixed[1])
            start = Case(other.name, fixed, moving, np.eye(4), points, masks)
            found = {m: METHODS[m](start, not options.no_masks)[0] for m in options.methods}
            first = next(iter(found.values()))
            apart = max(error(one, first, points)[0] for one in found.values())
            reference = mean_rigid(list(found.values())) if apart < LIMIT_MM else first
            summary.setdefault('references', {})[other.name] = {
                'header': error(np.eye(4), reference, points),
                **{method: error(one, reference, points) for method, one in found.items()},
            }
            print(json.dumps(summary['references']), flush=True)
        # Turned about the head as it lies in the T2w or FLAIR.
        centre = reference[:3, :3] @ points.mean(axis=0) + reference[:3, 3]
        moved = displacement(rng, centre)
        yield Case(
            other.name.replace('.nii.gz', ''), fixed, (moving[0], moved @ moving[1]),
            moved @ reference, points, masks,
        )  # fmt: skip


def mean_rigid(matrices: list[np.ndarray]) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_matrix([m[:3, :3] for m in matrices]).mean().as_matrix()
    out[:3, 3] = np.mean([m[:3, 3] for m in matrices], axis=0)
    return out


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def brain_mask(path: Path, model: str) -> np.ndarray:
    """Find the brain of a scan with the coarse network, on the scan's own grid."""
    from bids_app.images.conform import conform_file
    from bids_app.inference.brain import locate_brain
    from bids_app.inference.models import find_model

    with tempfile.TemporaryDirectory() as folder:
        conformed = Path(folder) / 'conformed.nii'
        conform_file(path, conformed)
        found = locate_brain(conformed, Path(folder), model=find_model(model), threads=1)
        mask, affine = load(Path(found['mask_file']))
    image = nib.load(path)
    return resample_to(mask, affine, image.shape, image.affine) > 0.5


if __name__ == '__main__':
    main()
