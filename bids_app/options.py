# SPDX-License-Identifier: Apache-2.0
"""The options of the command line and how they become a :class:`~bids_app.config.RunConfig`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bids_app import __version__
from bids_app.cluster.batches import parse_batch
from bids_app.config import CRF_BY_DEFAULT, MODULES, OPTIONAL_MODULES
from bids_app.errors import UsageError
from bids_app.group.options import add_group_options

REFERENCES = ('sessionwise', 'first-lex')
REFERENCE_CONTRASTS = ('auto', 'T1w')
PRECISIONS = ('auto', 'float32', 'bfloat16')
SEGMENTATIONS = ('default', 'deepnat')
DEEPNAT_PARITIES = (1, 2, 8)
REGISTRATIONS = ('network', 'refined', 'ants')
DWI_MOTION = ('none', 'rigid')
DWI_DENOISE = ('none', 'mppca')
DEBUG = ('workdir', 'nipype', 'traceback')
DEVICE_PATTERN = r'auto|cpu|cuda|cuda:\d+(,cuda:\d+)*'

_DEFAULT = ' (default)'

EXIT_CODES = """\
exit codes:
  0   all scans processed (or nothing left to do)
  1   at least one scan or report failed; the others are finished
  2   the command line asks for something that cannot be
  16  the input is not a valid BIDS data set
  66  no participant, session or scan matches
  70  a fault in AnatNet itself
  130, 143  interrupted; the same command goes on from there

Every option may be written with - or _ between its words. Results are for research, not for
clinical use.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the message instead of printing all options with it."""
        raise UsageError(f'{message} (see {self.prog} --help)')


class _Later(argparse.Action):
    """An option of a later release: an error that says so."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        raise UsageError(later(str(option)))


def later(what: str) -> str:
    """Word the error for something that is not in this release."""
    return f'{what} comes with a later release of AnatNet (this is {__version__})'


def normalise(argv: Sequence[str]) -> list[str]:
    """Write the names of long options with dashes.

    Examples
    --------
    >>> normalise(['--participant_label', 'a_b', '--mem_gb=4'])
    ['--participant-label', 'a_b', '--mem-gb=4']
    """
    normal = []
    for argument in argv:
        if argument.startswith('--'):
            name, equals, value = argument.partition('=')
            argument = name.replace('_', '-') + equals + value
        normal.append(argument)
    return normal


def build_parser(*, positionals_needed: bool = True, prog: str = 'anatnet') -> Parser:
    """Make the parser; an option that is not given leaves no trace in its result.

    Parameters
    ----------
    positionals_needed : bool
        ``False`` where a configuration file may hold them.
    prog : str
        Name of the command in messages.
    """
    parser = Parser(
        prog=prog,
        usage='%(prog)s bids_dir output_dir {participant,group} [options]\n'
        '       %(prog)s slurm bids_dir output_dir [options]   (see %(prog)s slurm --help)',
        description='Segment structural brain MRI and measure it: brain mask, tissues, 25 '
        'structures, their volumes, and maps in template space for voxel-based morphometry, with '
        'a report per session.',
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    optional: dict[str, Any] = {} if positionals_needed else {'nargs': '?', 'default': None}
    parser.add_argument(
        'bids_dir', type=Path, help='root of a raw BIDS data set; only read, never written',
        **optional,
    )  # fmt: skip
    parser.add_argument(
        'output_dir', type=Path, help='folder of the results, for instance '
        'BIDS_DIR/derivatives/anatnet', **optional,
    )  # fmt: skip
    parser.add_argument(
        'analysis_level', choices=('participant', 'group'),
        help='participant: every session on its own; group: tables, outliers and statistics of '
        'all finished sessions',
        **optional,
    )  # fmt: skip
    _add_input_options(parser)
    _add_method_options(parser)
    _add_deepnat_options(parser)
    _add_vbm_options(parser)
    _add_dwi_options(parser)
    _add_resource_options(parser)
    _add_run_options(parser)
    add_group_options(parser)
    _add_other_options(parser)
    _add_later_options(parser)
    return parser


def _add_input_options(parser: Parser) -> None:
    group = parser.add_argument_group('which scans')
    group.add_argument(
        '--participant-label', nargs='+', metavar='LABEL', type=_labels('sub-'),
        help='participants to process, with or without "sub-" (default: all)',
    )  # fmt: skip
    group.add_argument(
        '--session-label', nargs='+', metavar='LABEL', type=_labels('ses-'),
        help='sessions to process, with or without "ses-" (default: all)',
    )  # fmt: skip
    group.add_argument(
        '--batch', metavar='I/N', type=_batch,
        help='the I-th of N parts of the participants, by subject: 1/3, 2/3 and 3/3 together are '
        'all of them',
    )  # fmt: skip
    group.add_argument(
        '--bids-filter-file', metavar='FILE', type=Path,
        help='JSON that narrows the choice of images, for instance '
        '{"t1w": {"acquisition": "mprage", "run": null}}; keys t1w, t2w, flair, other, dwi; null '
        'means without, "*" with any',
    )  # fmt: skip
    group.add_argument(
        '--subject-anatomical-reference', choices=(*REFERENCES, 'unbiased'), metavar='REFERENCE',
        help='sessionwise: one result per session (default); first-lex: one per subject, of its '
        'first session',
    )  # fmt: skip
    group.add_argument(
        '--reference', choices=REFERENCE_CONTRASTS,
        help='T1w: process only sessions that have a T1w; auto (default): where there is none, '
        'the sharpest other anatomical image takes its place, with less exact volumes',
    )  # fmt: skip
    group.add_argument(
        '--bids-database-dir', metavar='DIR', type=Path,
        help='keep the index of the data set here for later runs; made if absent, made anew when '
        'a file has come or gone',
    )  # fmt: skip
    group.add_argument(
        '--skip-bids-validation', '--skip-bids-validator', action='store_true',
        dest='skip_bids_validation',
        help='do not check the data set before processing it',
    )  # fmt: skip
    group.add_argument(
        '-d', '--derivatives', nargs='+', action='extend', metavar='NAME=PATH', type=_derivative,
        help='BIDS derivatives of other pipelines: where they hold a brain mask or tissue maps of '
        'a session, these replace ours. NAME is what results call them (default: that of the '
        'folder)',
    )  # fmt: skip


def _add_method_options(parser: Parser) -> None:
    group = parser.add_argument_group('what to compute, and how')
    group.add_argument(
        '--modules', nargs='+', metavar='MODULE',
        help=f'any of {", ".join(MODULES)} (default: all of these) and '
        f'{", ".join(OPTIONAL_MODULES)}; mask is always computed, vbm needs the ones before it, '
        'dwi needs tissue and wholebrain',
    )  # fmt: skip
    group.add_argument(
        '--model', metavar='NAME',
        help='segmentation model (default: brain); at the group level a formula, "~ age + sex"',
    )  # fmt: skip
    group.add_argument(
        '--tissue-model', metavar='MODEL',
        help='what makes the tissue maps: none (default), the segmentation model; auto, the '
        'tissue model that uses most of the contrasts of a session; or a tissue model by its '
        'name or folder',
    )  # fmt: skip
    group.add_argument(
        '--correct-lesions', action='store_true',
        help='count white-matter lesions that a tissue model finds as white matter',
    )  # fmt: skip
    group.add_argument(
        '--models-dir', metavar='DIR', type=Path,
        help='folder with a folder per model (default: the one that AnatNet was installed with)',
    )  # fmt: skip
    group.add_argument(
        '--device', metavar='DEVICE', type=_device,
        help='auto (default: a GPU where one works, and one line why), cpu, cuda, cuda:N, or '
        'several: cuda:0,cuda:1; GPUs that cannot be had are an error. Results of CPU and GPU are '
        'not numerically identical',
    )  # fmt: skip
    group.add_argument(
        '--precision', choices=PRECISIONS,
        help='numbers inside the networks (default: auto, bfloat16 where the processor has it)',
    )  # fmt: skip
    group.add_argument(
        '--random-seed',
        type=int,
        metavar='N',
        help='seed of permutations and classifiers at the group level (default: 0); nothing at '
        'the participant level is random',
    )
    group.add_argument(
        '--sloppy', action='store_true', help='fast and rough, for tests of the installation only'
    )


def _add_deepnat_options(parser: Parser) -> None:
    group = parser.add_argument_group('structures by DeepNAT')
    group.add_argument(
        '--segmentation', choices=SEGMENTATIONS,
        help='what labels the structures: default, the segmentation model; deepnat, the two '
        'networks of DeepNAT (25 structures of T1w images; weights for non-commercial use only)',
    )  # fmt: skip
    group.add_argument(
        '--deepnat-model', metavar='MODEL',
        help='its second network, by name or folder, for instance one that was adapted to labels '
        'of your own (default: deepnat-structures-miccai2012)',
    )  # fmt: skip
    switch = group.add_mutually_exclusive_group()
    switch.add_argument(
        '--crf', dest='crf', action='store_true',
        help='follow it with a dense conditional random field' + _DEFAULT * CRF_BY_DEFAULT,
    )  # fmt: skip
    switch.add_argument(
        '--no-crf', dest='crf', action='store_false',
        help='leave out the conditional random field' + _DEFAULT * (not CRF_BY_DEFAULT),
    )  # fmt: skip
    group.add_argument(
        '--deepnat-mirror', action='store_true',
        help='average its second network with what it says of the mirrored brain, as the default '
        'model does: takes twice the time; the published system does not',
    )  # fmt: skip
    group.add_argument(
        '--deepnat-parities', type=int, choices=DEEPNAT_PARITIES,
        help='how many of the eight parity classes of voxels are centres of patches: 2 (default) '
        'reaches each voxel, 1 is faster, 8 is the network at each voxel and takes longest',
    )  # fmt: skip
    group.add_argument(
        '--deepnat-tile', type=_positive, metavar='VOXELS',
        help='edge of the tiles of the networks (default: chosen by memory)',
    )  # fmt: skip


def _add_vbm_options(parser: Parser) -> None:
    group = parser.add_argument_group('template space (module vbm)')
    group.add_argument(
        '--output-spaces', nargs='+', metavar='SPACE[:res-MM]',
        help='templates to which scans are registered (default: MNI152NLin2009aSym, which is '
        'always there; others must be in the folder of TemplateFlow), for instance '
        'MNI152NLin2009cAsym:res-2 or MNIPediatricAsym:cohort-3; results on the grid of the scan '
        'are always written',
    )  # fmt: skip
    group.add_argument(
        '--registration', choices=REGISTRATIONS,
        help='network: the prediction of a network; refined (default): then optimised on the '
        'scan; ants: SyN of ANTs instead, which takes several times as long',
    )  # fmt: skip
    group.add_argument(
        '--voxel-size', type=float, metavar='MM',
        help='voxel size in template space where --output-spaces gives none (default: 1.5)',
    )  # fmt: skip
    group.add_argument(
        '--smooth-fwhm', nargs='+', metavar='MM', type=_width,
        help='widths of the Gaussian kernels that modulated maps are smoothed with, one map for '
        'each (default: 6 8); none or 0 for no smoothing',
    )  # fmt: skip
    group.add_argument(
        '--atlas', nargs='+', action='extend', metavar='FILE[:LABELS]',
        help='label images in template space (.nii or .nii.gz) with their tables (.tsv with the '
        'columns index and name): tissue volumes of every region are written',
    )  # fmt: skip
    group.add_argument(
        '--classifier', nargs='+', action='extend', metavar='MODEL',
        help='apply classifiers that "group --classify" has trained: their folders '
        '(OUTPUT_DIR/group/classify_*/models/NAME), or names in --models-dir. For research, not '
        'for clinical use',
    )  # fmt: skip


def _add_dwi_options(parser: Parser) -> None:
    group = parser.add_argument_group(
        'diffusion images (module dwi)',
        'Where a session has diffusion images and no anatomical one, a T1w is synthesised from '
        'them and segmented, without being asked for.',
    )
    group.add_argument(
        '--dwi', action='store_true',
        help='process diffusion images, too: the same as the module dwi on top of the others',
    )  # fmt: skip
    group.add_argument(
        '--synth-model', metavar='NAME',
        help='model that synthesises a T1w from diffusion images (default: deepanat), or none',
    )  # fmt: skip
    group.add_argument(
        '--synth-1mm', action='store_true',
        help='write the synthesised T1w at 1 mm, too, where there is a real one',
    )  # fmt: skip
    group.add_argument(
        '--synth-as-preproc', action='store_true',
        help='name a synthesised T1w desc-preproc_T1w where there is no real one, so that '
        'fMRIPrep takes it for the T1w of the session',
    )  # fmt: skip
    group.add_argument(
        '--b0-threshold', type=float, metavar='B',
        help='largest b-value of images without diffusion weighting, s/mm^2 (default: 50)',
    )  # fmt: skip
    group.add_argument(
        '--dwi-motion', choices=DWI_MOTION,
        help='rigid: register every volume rigidly and turn its b-vector; none (default)',
    )  # fmt: skip
    group.add_argument(
        '--dwi-denoise', choices=DWI_DENOISE,
        help='mppca: remove noise by principal components before everything else; none (default)',
    )  # fmt: skip


def _add_resource_options(parser: Parser) -> None:
    group = parser.add_argument_group('resources')
    group.add_argument(
        '--nprocs', '--nthreads', '--n-cpus', dest='nprocs', type=_positive, metavar='N',
        help='CPU cores for all scans together (default: those this process may use)',
    )  # fmt: skip
    group.add_argument(
        '--omp-nthreads', type=_positive, metavar='N',
        help='threads of a single step (default: --nprocs, at most 8)',
    )  # fmt: skip
    group.add_argument(
        '--mem-gb', dest='mem_gb', type=_memory(1.0), metavar='GB',
        help='memory for all scans together, in GB (default: what the machine has)',
    )  # fmt: skip
    group.add_argument(
        '--mem', '--mem-mb', dest='mem_gb', type=_memory(1e-3), metavar='MB',
        help='the same in MB, or with a suffix: 16G, 16000M',
    )  # fmt: skip
    group.add_argument(
        '--low-mem', action='store_true',
        help='less memory: smaller tiles, and no averaging over the mirrored scan, which makes '
        'results slightly less accurate',
    )  # fmt: skip
    group.add_argument(
        '--gpu-slots', type=_positive, metavar='N',
        help='network steps that share a GPU at a time (default: 1)',
    )  # fmt: skip
    group.add_argument(
        '--use-plugin', '--nipype-plugin-file', dest='use_plugin', type=Path, metavar='FILE',
        help='YAML with Nipype\'s "plugin" and "plugin_args", for instance for a cluster',
    )  # fmt: skip
    group.add_argument(
        '--stop-on-first-crash', action='store_true',
        help='stop at the first scan that fails (default: finish the others)',
    )  # fmt: skip


def _add_run_options(parser: Parser) -> None:
    group = parser.add_argument_group('what to do')
    group.add_argument(
        '--dry-run', action='store_true',
        help='only list for every session what was found, chosen and skipped, and why',
    )  # fmt: skip
    again = group.add_mutually_exclusive_group()
    again.add_argument(
        '--resume', dest='overwrite', action='store_false',
        help='skip sessions that are done and unchanged (default)',
    )  # fmt: skip
    again.add_argument(
        '--overwrite', action='store_true', help='process sessions again that are done'
    )
    group.add_argument(
        '--skip-failed', action='store_true',
        help='leave sessions alone that failed before with the same input',
    )  # fmt: skip
    group.add_argument(
        '--reports-only', action='store_true', help='only make the reports of finished sessions'
    )
    group.add_argument(
        '--boilerplate-only', action='store_true',
        help='only write the methods text and its references (OUTPUT_DIR/logs/CITATION.*)',
    )  # fmt: skip


def _add_other_options(parser: Parser) -> None:
    group = parser.add_argument_group('other')
    group.add_argument(
        '-w', '--work-dir', type=Path, metavar='DIR',
        help='folder of intermediate files (default: ./work); must not lie inside BIDS_DIR',
    )  # fmt: skip
    group.add_argument(
        '--clean-workdir', action='store_true',
        help='remove what earlier runs of AnatNet left in the work folder before starting',
    )  # fmt: skip
    group.add_argument(
        '--config-file', type=Path, metavar='FILE',
        help='TOML with these options, for instance OUTPUT_DIR/logs/*/config.toml of an earlier '
        'run; the command line wins',
    )  # fmt: skip
    group.add_argument(
        '-v', '--verbose', action='count', help='say more (-v), or everything (-vv)'
    )
    group.add_argument(
        '--debug', nargs='+', choices=(*DEBUG, 'all'),
        help='keep intermediate files (workdir), log all that the workflow engine says (nipype), '
        'show where an error comes from (traceback), or all of these',
    )  # fmt: skip
    group.add_argument(
        '--notrack', action='store_true',
        help='accepted for the sake of other apps: AnatNet never sends anything',
    )  # fmt: skip
    group.add_argument('--version', action='version', version=f'anatnet {__version__}')
    group.add_argument('-h', '--help', action='help', help='show this text')


def _add_later_options(parser: Parser) -> None:
    for names in (
        ('--resource-monitor',), ('--write-graph',), ('--lesion-mask',),
    ):  # fmt: skip
        parser.add_argument(*names, nargs='*', action=_Later, help=argparse.SUPPRESS)


def _labels(prefix: str) -> Callable[[str], list[str]]:
    """Make a type that takes labels with or without a prefix, also several with commas."""

    def labels(text: str) -> list[str]:
        found = [part.removeprefix(prefix) for part in re.split(r'[,\s]+', text) if part]
        for label in found:
            if not re.fullmatch(r'[0-9a-zA-Z+]+', label):
                raise argparse.ArgumentTypeError(
                    f'"{label}" is not a label: letters and digits only, for instance 01'
                )
        return found

    return labels


def _batch(text: str) -> str:
    try:
        parse_batch(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix('--batch ')) from None
    return text


def _derivative(text: str) -> tuple[str, Path]:
    """Take ``NAME=PATH``, or a path whose last folder gives the name.

    Examples
    --------
    >>> _derivative('lesion=/data/masks'), _derivative('/data/my_masks')
    (('lesion', PosixPath('/data/masks')), ('mymasks', PosixPath('/data/my_masks')))
    """
    name, equals, path = text.partition('=')
    if not equals or '/' in name:
        path = text
        name = re.sub(r'[^0-9a-zA-Z]', '', Path(path).absolute().name)
    if not name or not path:
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=PATH')
    return name, Path(path)


def _width(text: str) -> float:
    if text.lower() == 'none':
        return 0.0
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a width in mm, like 8') from None


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number above 0')
    return int(text)


def _memory(unit: float) -> Callable[[str], float]:
    """Make a type that returns gigabytes; ``unit`` is that of a number without a suffix."""

    def memory(text: str) -> float:
        match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?', text.strip(), re.IGNORECASE)
        if match is None or float(match[1]) <= 0:
            raise argparse.ArgumentTypeError(f'"{text}" is not an amount of memory, like 16G')
        factors = {'': unit, 'K': 1e-6, 'M': 1e-3, 'G': 1.0, 'T': 1e3}
        return float(match[1]) * factors[match[2].upper()]

    return memory


def _device(text: str) -> str:
    if not re.fullmatch(DEVICE_PATTERN, text):
        raise argparse.ArgumentTypeError(
            f'"{text}" is not one of auto, cpu, cuda, cuda:N and cuda:0,cuda:1'
        )
    return text
