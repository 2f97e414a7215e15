# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of every step of one T1w, and of public tools, as JSON.

    python benchmarks/anat.py SCAN.nii.gz [--threads 2] [--skip-public]

Each step runs in a child process of its own, so that its peak memory is its own (start-up of
Python included). The public tools run in the same call on the same scan and mask: antspyx's N4
at full size, and N4 followed by Atropos with three classes (a tissue segmentation).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = {
    'conform': """
from bids_app.images.conform import conform_file
conform_file(Path(scan), work / 'conformed.nii')
""",
    'mask': """
from bids_app.inference.brain import locate_brain
locate_brain(work / 'conformed.nii', work, model=model, threads=threads, precision=precision)
""",
    'bias': """
import nibabel as nib, numpy as np
from bids_app.images.bias import n4_bias_field
image = nib.load(work / 'conformed.nii'); data = np.asarray(image.dataobj, dtype=np.float32)
mask = np.asarray(nib.load(work / 'mask.nii').dataobj)
field = n4_bias_field(data, image.affine, mask, threads=threads)
nib.save(nib.Nifti1Image(data / field, image.affine), work / 'corrected.nii')
""",
    'segment': """
from bids_app.inference.brain import segment_brain
segment_brain(work / 'corrected.nii', work / 'coarse.nii', Path(scan), work / 'out', model=model,
              threads=threads, precision=precision)
""",
}
PUBLIC = {
    'antspyx N4, full size': """
import ants
image, mask = ants.image_read(str(work / 'conformed.nii')), ants.image_read(str(work / 'mask.nii'))
ants.n4_bias_field_correction(image, mask=mask, shrink_factor=1)
""",
    'antspyx N4 (shrink 4) and Atropos, 3 classes': """
import ants
image, mask = ants.image_read(str(work / 'conformed.nii')), ants.image_read(str(work / 'mask.nii'))
image = ants.n4_bias_field_correction(image, mask=mask, shrink_factor=4)
ants.atropos(a=image, x=mask, i='kmeans[3]', m='[0.1,1x1x1]', c='[5,0]')
""",
}


def measure(code: str, settings: str, threads: int) -> dict[str, float]:
    """Run code in a child process; return its seconds and peak memory (MB)."""
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': str(threads),
        'ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS': str(threads),
    }
    script = f'{settings}\n{code}\n' + (
        'import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', script], env=environment, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f'a step failed: {done.stderr.strip().splitlines()[-1]}')
    return {
        'seconds': round(seconds, 2),
        'peak_mb': round(int(done.stdout.strip().splitlines()[-1]) / 1024),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('scan', type=Path, help='a T1w')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default: 2)')
    parser.add_argument('--model', default='brain', help='model (default: brain)')
    parser.add_argument('--models-dir', type=Path, help='folder of models')
    parser.add_argument('--precision', default='auto', help='auto, float32 or bfloat16')
    parser.add_argument('--skip-public', action='store_true', help='leave the public tools out')
    options = parser.parse_args()

    from bids_app.inference.device import cpu_has_bfloat16
    from bids_app.inference.models import find_model

    model = find_model(options.model, options.models_dir)
    steps, public = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        settings = (
            'from pathlib import Path\n'
            f'scan, work, model = {str(options.scan.resolve())!r}, Path({folder!r}), '
            f'Path({str(model.resolve())!r})\n'
            f'threads, precision = {options.threads}, {options.precision!r}'
        )
        for name, code in STEPS.items():
            steps[name] = measure(code, settings, options.threads)
        if not options.skip_public:
            for name, code in PUBLIC.items():
                public[name] = measure(code, settings, options.threads)
    total = sum(step['seconds'] for step in steps.values())
    result = {
        'scan': options.scan.name,
        'threads': options.threads,
        'cpu': platform.processor() or platform.machine(),
        'cpu_bfloat16': cpu_has_bfloat16(),
        'memory_gb': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'model': model.name,
        'precision': options.precision,
        'steps': steps,
        'total_seconds': round(total, 2),
        'peak_mb': max(step['peak_mb'] for step in steps.values()),
        'public': {
            name: {**row, 'ratio_to_ours': round(row['seconds'] / total, 2)}
            for name, row in public.items()
        },
        'children_peak_mb': round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    print(json.dumps(result, indent=2))


if __name__ == '__main__':
    main()
