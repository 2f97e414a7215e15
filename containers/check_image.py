#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check an image at the end of its build: ``check_image.py TORCH VERSION MODELS``.

``TORCH`` is the build argument (``cpu`` or the tag of a CUDA version), ``VERSION`` that of the
label, ``MODELS`` the folder ``models`` of the source. Ends with code 1 and one line on the first
thing that is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path


def problem(flavour: str, version: str, models: Path) -> str | None:
    """Say what is wrong with this environment; ``None`` if nothing is.

    Parameters
    ----------
    flavour : str
        ``cpu``, or anything else for a build of PyTorch with CUDA.
    version : str
        The version of AnatNet that the labels of the image name.
    models : Path
        Folder of the models that must have been installed, with the right checksums.
    """
    import torch

    import bids_app
    from bids_app.errors import AnatNetError
    from bids_app.images.templates import DEFAULT_SPACE, find_template
    from bids_app.inference.models import find_model, load_card, model_checksum

    if (torch.version.cuda is None) != (flavour == 'cpu'):
        return (
            f'TORCH={flavour}, but pip took torch {torch.__version__}: set TORCH_INDEX_URL to an '
            'index that has that build'
        )
    if bids_app.__version__ != version:
        return f'VERSION={version}, but the package is {bids_app.__version__}'
    try:
        for weights in sorted(models.glob('*/weights.safetensors')):
            folder = find_model(weights.parent.name)
            if model_checksum(folder) != load_card(folder).sha256:
                return f'the weights in {folder} are not those of their card'
        template = find_template(DEFAULT_SPACE)
    except AnatNetError as error:
        return str(error)
    files = (template.t1w, template.mask, template.tissues, template.labels)
    missing = [file for file in files if file is None or not file.is_file()]
    if missing:
        return f'a file of the template is missing: {missing[0]}'
    return None


def main(arguments: list[str]) -> int:
    """Print what is wrong, if anything is."""
    flavour, version, models = arguments
    wrong = problem(flavour, version, Path(models))
    if wrong:
        print(f'image: {wrong}', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
