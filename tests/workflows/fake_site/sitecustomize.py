# SPDX-License-Identifier: Apache-2.0
"""Put a network that needs no torch in the place of the real one, in every process of a test.

Python imports this module when it starts if its folder is on ``PYTHONPATH``. The stand-in finds a
bright ball and calls its shells CSF, grey and white matter. The registration only brings the
centre of the ball to that of the template. ``ANATNET_TEST_HOLD`` names a folder: as long as it
holds a file ``<step>.hold``, that step waits there, and says so by writing its process id to
``<step>.pid``. ``ANATNET_TEST_GPUS`` is how many GPUs torch pretends to have when it is asked,
``ANATNET_TEST_FALLBACK`` what the first network step says it fell back to.
"""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path


def _hold(step):
    folder = os.environ.get('ANATNET_TEST_HOLD')
    if not folder or not (Path(folder) / f'{step}.hold').exists():
        return
    (Path(folder) / f'{step}.pid').write_text(str(os.getpid()))
    (Path(folder) / f'{step}-{os.getpid()}.waiting').touch()
    while (Path(folder) / f'{step}.hold').exists():
        time.sleep(0.05)


def _load(path):
    import nibabel as nib
    import numpy as np

    image = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32), image.affine


def _save(data, affine, path):
    import nibabel as nib

    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return str(path)


def locate_brain(in_file, out_dir, *, model, device, precision, threads, low_mem):
    import numpy as np

    from bids_app.errors import ImageError

    _hold('mask')
    data, affine = _load(in_file)
    mask = data > 0.4 * np.percentile(data, 99)
    if mask.mean() > 0.5:
        raise ImageError(f'{in_file.name}: no brain was found: look at the scan')
    return {
        'coarse_file': _save(data[::3, ::3, ::3], affine, out_dir / 'coarse.nii'),
        'mask_file': _save(mask.astype(np.uint8), affine, out_dir / 'mask.nii'),
        'device': device,
        'precision': 'float32',
        'fallback': os.environ.get('ANATNET_TEST_FALLBACK'),
        'confidence': 0.9,
        'brain_mm3': float(mask.sum()),
        'orientation_suspect': None,
    }


def segment_brain(in_file, coarse_file, native_file, out_dir, *, sloppy=False, **options):
    import nibabel as nib
    import numpy as np

    from bids_app.data import structures

    _hold('segment')
    data, affine = _load(native_file)
    level = data / np.percentile(data, 99)
    mask = level > 0.4
    dseg = np.where(mask, np.digitize(level, [0.4, 0.6, 0.8]), 0)
    dseg = np.array([0, 3, 1, 2], np.uint8)[dseg]
    right = nib.affines.apply_affine(affine, np.argwhere(np.ones(data.shape)))[:, 0] > 0
    side = right.reshape(data.shape)
    labels = np.select(
        [dseg == 3, (dseg == 1) & ~side, (dseg == 1) & side, (dseg == 2) & ~side, dseg == 2],
        [24, 3, 42, 2, 41],
        0,
    ).astype(np.uint8)
    maps = {'mask': mask.astype(np.uint8), 'dseg': dseg, 'wholebrain': labels}
    for name, value in (('gm', 1), ('wm', 2), ('csf', 3)):
        maps[name] = (0.9 * (dseg == value)).astype(np.float32)
    maps['entropy'] = (0.2 * mask).astype(np.float32)
    voxel = abs(np.linalg.det(affine[:3, :3]))
    files = {f'{k}_file': _save(v, affine, out_dir / f'{k}.nii') for k, v in maps.items()}
    tissues = [
        {'index': i, 'name': n, 'volume_mm3': float((dseg == i).sum() * voxel),
         'mean_probability': 0.9}
        for i, n in ((1, 'GM'), (2, 'WM'), (3, 'CSF'))
    ]  # fmt: skip
    return {
        **files,
        'structures': [
            {'index': s.index, 'volume_mm3': float((labels == s.index).sum() * voxel),
             'mean_probability': 0.9}
            for s in structures()
        ],
        'tissues': tissues,
        'tiv_mm3': sum(row['volume_mm3'] for row in tissues),
        'entropy_mean': 0.2,
        'device': options['device'],
        'precision': 'float32',
        'fallback': None,
    }  # fmt: skip


def normalise_files(*, mask, template, method, model, out_file, gm, device, **options):
    import nibabel as nib
    import numpy as np

    from bids_app.errors import ImageError
    from bids_app.images.templates import REGISTRATION_AFFINE, REGISTRATION_SHAPE
    from bids_app.registration.normalisation import Normalisation

    _hold('normalise')
    inside, affine = _load(mask)
    if inside.shape[0] == 31:
        raise ImageError(f'{mask.name}: cannot be registered to {template.space}')
    matrix = np.eye(4)
    matrix[:3, 3] = nib.affines.apply_affine(affine, np.argwhere(inside > 0).mean(axis=0))
    matrix[:3, :3] *= 0.5
    zero = np.zeros((3, *REGISTRATION_SHAPE), np.float32)
    measures = {'dice_gm': 0.8, 'jacobian_min': 1.0, 'seconds_affine': 0.1}
    Normalisation(template.space, matrix, REGISTRATION_AFFINE, zero, zero, method, measures).save(
        out_file
    )
    return {
        'measures': measures, 'method': method, 'space': template.space, 'device': device,
        'precision': 'float32', 'fallback': None,
    }  # fmt: skip


def _pretend_gpus(number):
    cuda = types.SimpleNamespace(
        is_available=lambda: number > 0,
        device_count=lambda: number,
        get_device_name=lambda i: f'GPU {i}',
    )
    torch = types.ModuleType('torch')
    torch.cuda, torch.version = cuda, types.SimpleNamespace(cuda='12')
    sys.modules['torch'] = torch


if os.environ.get('ANATNET_TEST_GPUS') and 'get_device_name' in ' '.join(sys.orig_argv):
    _pretend_gpus(int(os.environ['ANATNET_TEST_GPUS']))

_run = types.ModuleType('bids_app.registration.run')
_run.normalise_files = normalise_files
sys.modules['bids_app.registration.run'] = _run

_fake = types.ModuleType('bids_app.inference.brain')
_fake.locate_brain = locate_brain
_fake.segment_brain = segment_brain
sys.modules['bids_app.inference.brain'] = _fake
