# SPDX-License-Identifier: Apache-2.0
"""The methods section of a report: text to copy into a paper, with its references.

The text is in the public domain (CC0), so that it may be copied word for word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bids_app.bids.outputs import SYNTHESIZED
from bids_app.reports.references import REFERENCES, Reference


def methods_text(
    version: str,
    models: Sequence[Mapping[str, Any]] = (),
    modules: Sequence[str] = ('mask', 'tissue', 'wholebrain'),
    *,
    sloppy: bool = False,
    low_mem: bool = False,
    registration: str = 'refined',
    spaces: Sequence[str] = ('MNI152NLin2009aSym',),
    voxel_sizes: Sequence[float] = (1.5,),
    fwhm: Sequence[float] = (6, 8),
    atlases: Sequence[str] = (),
    classifiers: Sequence[Mapping[str, str]] = (),
    precomputed: Sequence[str] = (),
    references: Sequence[str] = ('T1w',),
    contrasts: Sequence[str] = (),
    tissue_model: str = 'none',
    correct_lesions: bool = False,
    dwi: Mapping[str, str] | None = None,
    deepnat: bool = False,
    crf: bool = True,
    mirror: bool = False,
) -> str:
    """Word the methods section as Markdown with citations such as ``[@n4]``.

    It tells of the steps that run, and of no others.

    Parameters
    ----------
    version : str
        Version of AnatNet.
    models : sequence of mapping
        ``name``, ``version`` and ``sha256`` of the weights that were used.
    modules : sequence of str
        What was computed.
    sloppy, low_mem : bool
        Options that leave out part of a step.
    registration : {'network', 'refined', 'ants'}
        What made the nonlinear part; like everything below only told where ``vbm`` is among the
        modules, but for ``precomputed``.
    spaces : sequence of str
        Output spaces.
    voxel_sizes : sequence of float
        Of the maps, mm.
    fwhm : sequence of float
        Smoothing widths, mm; empty for none.
    atlases : sequence of str
        Names of the atlases with regional volumes.
    classifiers : sequence of mapping
        ``name``, ``target`` (what is predicted) and ``map`` (from what, in words) of the
        classifiers that were applied.
    precomputed : sequence of str
        What was taken from other derivatives, in words: ``brain mask``, ``tissue maps``.
    references : sequence of str
        Contrasts of the images on which everything was computed.
    contrasts : sequence of str
        Contrasts of the images that were registered to them.
    tissue_model : str
        Model of the tissue maps; ``none`` for the segmentation network, ``auto`` for the one
        that uses most contrasts.
    correct_lesions : bool
        Whether white-matter lesions count as white matter.
    dwi : mapping, optional
        How diffusion images were processed, where they were: ``synth_model``, ``motion`` and
        ``denoise``, each ``none`` or what was used.
    deepnat, crf, mirror : bool
        Whether DeepNAT labels the structures, whether its random field follows, and whether the
        mirrored brain is segmented, too.
    """
    paragraphs = [
        f'Anatomical images were processed with AnatNet {version}, a BIDS App [@bids; @bidsapps] '
        'that is built on Nipype [@nipype] and PyBIDS [@pybids].',
        f'{_references_text(references)} was reoriented to RAS axis order and resampled to 1 mm '
        'isotropic voxels. The brain was located on the whole head at 3 mm by a three-dimensional '
        'residual U-Net [@unet] that was trained on images synthesised from label maps, so that '
        'it is insensitive to contrast, resolution and presence of the skull [@synthseg].',
    ]
    results = []
    if 'tissue' in modules:
        results.append('probability maps of grey matter, white matter and cerebrospinal fluid')
    if 'wholebrain' in modules and deepnat:
        results.insert(0, 'the brain mask')
    elif 'wholebrain' in modules:
        results.append(
            'labels of 25 brain structures, the set of DeepNAT [@deepnat], with the numbers and '
            'names of FreeSurfer [@aseg]'
        )
    if results:
        paragraphs += [
            _bias_text('two' if sloppy else 'three'),
            _segmentation_text(' and '.join(results), mirrored=not (sloppy or low_mem)),
            'Image quality was described with the measures of MRIQC [@mriqc], among them the '
            'coefficient of joint variation [@cjv], contrast-to-noise ratio [@cnr] and entropy '
            'focus criterion [@efc].',
        ]
        if 'wholebrain' in modules and deepnat:
            paragraphs.insert(-1, _deepnat_text(crf, mirror))
        if contrasts:
            paragraphs.append(_contrasts_text(contrasts, references))
        if tissue_model != 'none' and 'tissue' in modules:
            paragraphs.append(_tissue_model_text(tissue_model, correct_lesions))
    else:
        paragraphs[-1] += ' The brain mask was resampled to the grid of the input image.'
    if dwi is not None:
        paragraphs.append(_diffusion_text(dwi, references))
    if precomputed:
        paragraphs.append(
            'Taken from existing derivatives instead of those computed here: '
            f'{_joined(precomputed)}.'
        )
    if 'vbm' in modules and spaces:
        paragraphs.append(_registration_text(registration, spaces))
        paragraphs.append(_maps_text(voxel_sizes, fwhm))
        if atlases:
            paragraphs.append(_regions_text(atlases))
        if classifiers:
            paragraphs.append(_classifiers_text(classifiers))
    weights = ', '.join(
        f'{model.get("name", "?")}'
        + (f' version {model["version"]}' if model.get('version') else '')
        + (f' (SHA-256 {str(model["sha256"])[:12]})' if model.get('sha256') else '')
        for model in models
    )
    if weights:
        paragraphs.append(f'Network weights: {weights}.')
    return '\n\n'.join(paragraphs) + '\n'


_WEIGHTINGS = {'T1w': 'T1-weighted', 'T2w': 'T2-weighted', 'FLAIR': 'FLAIR',
               'PDw': 'proton-density-weighted', 'T2starw': 'T2*-weighted'}  # fmt: skip


def _references_text(references: Sequence[str]) -> str:
    if SYNTHESIZED in references:
        others = [name for name in references if name != SYNTHESIZED]
        if not others:
            return (
                'There being no anatomical image, a T1-weighted image was synthesised from the '
                'diffusion images; volumes from it are not those of a measured image. It'
            )
        return (
            f'{_references_text(others).rstrip(",")}, or where there was no anatomical image a '
            'T1-weighted one that was synthesised from the diffusion images,'
        )
    words = [_WEIGHTINGS.get(name, name) for name in references]
    if list(references) == ['T1w']:
        return 'Each T1-weighted image'
    if 'T1w' not in references:
        return (
            f'There being no T1-weighted image, the {_joined(words)} image took its place, which '
            'makes volumes less exact. It'
        )
    others = [word for word in words if word != _WEIGHTINGS['T1w']]
    return (
        f'Each T1-weighted image, or where there was none the sharpest other one '
        f'({_joined(others)}), which makes volumes less exact,'
    )


def _diffusion_text(dwi: Mapping[str, str], references: Sequence[str]) -> str:
    """Word how diffusion images were processed, and what was left as it was."""
    parts = ['Diffusion runs of one grid and phase-encoding direction were joined.']
    if dwi['denoise'] != 'none':
        parts.append('Noise was removed by principal components [@mppca].')
    if dwi['motion'] != 'none':
        parts.append(
            'Every volume was registered rigidly, interpolated once with cubic B-splines, and its '
            'gradient direction turned with the head.'
        )
    parts.append(
        'The brain was located on the mean image without diffusion weighting, from which a bias '
        'field was estimated with N4 [@n4] and taken out of all volumes. The diffusion tensor was '
        'fitted by weighted linear least squares [@wls] to volumes of b up to 1500 s/mm^2 where '
        'these suffice, else to all, which gave fractional anisotropy [@fa] and mean, axial and '
        'radial diffusivity.'
    )
    if dwi['synth_model'] != 'none':
        parts.append(
            f'The network {dwi["synth_model"]}, trained on simulated diffusion data, synthesised '
            'a T1-weighted image from the diffusion images as in DeepAnat [@deepanat].'
        )
    if any(name != SYNTHESIZED for name in references):
        through = 'the synthesised image' if dwi['synth_model'] != 'none' else 'b=0'
        parts.append(
            f'Anatomical and diffusion images were registered rigidly through {through} [@nmi], '
            'and the structures were brought to the grid of the diffusion images.'
        )
    parts.append('Distortion by susceptibility and by eddy currents was not corrected.')
    return ' '.join(parts)


def _contrasts_text(contrasts: Sequence[str], references: Sequence[str]) -> str:
    words = _joined([_WEIGHTINGS.get(name, name) for name in contrasts])
    noun = 'image was' if len(contrasts) == 1 else 'images were'
    fixed = 'T1-weighted' if list(references) == ['T1w'] else 'reference'
    return (
        f'The {words} {noun} corrected in the same way, registered to the {fixed} image with a '
        'rigid transform that maximises normalised mutual information [@nmi], and interpolated '
        'once, with cubic B-splines.'
    )


def _tissue_model_text(model: str, correct_lesions: bool) -> str:
    which = (
        'the network that uses most of the contrasts of the session'
        if model == 'auto'
        else f'the network {model}'
    )
    text = (
        'Inside the brain mask the probabilities of grey matter, white matter and cerebrospinal '
        f'fluid were computed by {which}, from images at 1 mm with mean 0 and standard deviation '
        '1 in the brain, and resampled to the grid of the input image.'
    )
    if correct_lesions:
        text += ' White-matter lesions that it found on FLAIR images were counted as white matter.'
    return text


def _bias_text(resolutions: str) -> str:
    return (
        'Intensity non-uniformity was estimated with N4 [@n4] as distributed with ANTsPy [@antsx] '
        f'in {resolutions} resolutions, from samples on a coarse grid (about 4 mm) inside the '
        'brain mask; the image was divided by the field on its own grid, without interpolation of '
        'its voxels.'
    )


def _segmentation_text(results: str, mirrored: bool) -> str:
    average = (
        'Its probabilities were averaged with those of the mirrored image. ' if mirrored else ''
    )
    return (
        'A second network of this kind segmented the corrected image at 1 mm in overlapping '
        'blocks, given the image and the probabilities of the first network. '
        f'{average}The probabilities were resampled to the grid of the input image and the labels '
        f'decided there, which gave {results}. Volumes are sums of probabilities; voxelwise '
        'uncertainty is the normalised entropy of the posterior over labels.'
    )


def _deepnat_text(crf: bool, mirror: bool) -> str:
    text = (
        'The 25 brain structures of DeepNAT [@deepnat], with the numbers and names of FreeSurfer '
        '[@aseg], were labelled by a re-implementation of its two networks, trained on scans of '
        'OASIS [@oasis] with the manual labels of the MICCAI 2012 challenge on multi-atlas '
        'labelling: the first separates the brain from what is left around it, the second tells '
        'the structures apart. Both see patches of the image at 1 mm and the coordinates of their '
        'centre, three Cartesian ones and three eigenfunctions of the Laplace operator of the '
        'brain [@shapedna], and predict the centre and its six neighbours; they were evaluated as '
        'dense networks and the probabilities that reach a voxel averaged. '
    )
    if mirror:
        text += 'They were averaged with those of the mirrored image. '
    if crf:
        text += (
            'A fully connected conditional random field with a Gaussian and a bilateral kernel '
            '[@densecrf] followed. '
        )
    return text + (
        'The probabilities were resampled to the grid of the input image and the labels decided '
        'there. The weights are for non-commercial use only.'
    )


def _registration_text(method: str, spaces: Sequence[str]) -> str:
    network = (
        'It compared shares of grey matter, white matter and groups of structures in voxels of '
        '1.5 mm, not intensities. A convolutional network with the symmetric scheme of SYMNet '
        '[@symnet] predicted stationary velocity fields for both directions, which meet half way '
        'and are integrated by scaling and squaring [@dartel], so that the transform and its '
        'inverse are smooth and consistent.'
    )
    ways = {
        'network': network,
        'refined': f'{network} From there the fields were optimised on the scan itself with '
        'symmetric demons in the log domain [@demons].',
        'ants': 'The nonlinear part was computed with SyN [@syn] as distributed with ANTsPy '
        '[@antsx].',
    }
    return (
        'For voxel-based morphometry [@vbm] the scan was registered to '
        f'{_joined([_template_text(space) for space in spaces])} with an affine transform of '
        f'12 parameters, followed by a diffeomorphism. {ways[method]}'
    )


def _template_text(space: str) -> str:
    if space == 'MNI152NLin2009aSym':
        return f'the template {space} [@mni2009; @mni2011]'
    if space.startswith(('MNI152NLin2009', 'MNIPediatric', 'MNIInfant')):
        return f'the template {space} [@mni2009; @mni2011; @templateflow]'
    return f'the template {space} [@templateflow]'


def _maps_text(voxel_sizes: Sequence[float], fwhm: Sequence[float]) -> str:
    sizes = _joined([f'{size:g}' for size in voxel_sizes])
    text = (
        f'Maps of grey and white matter were warped to voxels of {sizes} mm and modulated '
        '[@modulation], that is multiplied by the Jacobian determinant of the whole transform, '
        'affine and nonlinear, so that their sums are the tissue volumes of the scan'
    )
    if fwhm:
        widths = _joined([f'{width:g}' for width in fwhm])
        text += f', and smoothed with Gaussian kernels of {widths} mm full width at half maximum'
        if len(fwhm) == 1:
            text = text.replace('with Gaussian kernels', 'with a Gaussian kernel')
    return (
        f'{text}. The order of the steps is that of deepmriprep [@deepmriprep]; the code and the '
        'networks are independent of it. Since the affine part is included in the modulation, '
        'analyses should take the total intracranial volume into account.'
    )


def _regions_text(atlases: Sequence[str]) -> str:
    noun = 'atlas' if len(atlases) == 1 else 'atlases'
    return (
        f'The {noun} {_joined(atlases)} {"was" if len(atlases) == 1 else "were"} warped to the '
        'grid of the scan, where the volumes of grey matter, white matter and cerebrospinal fluid '
        'of every region are sums of probabilities.'
    )


def _classifiers_text(classifiers: Sequence[Mapping[str, str]]) -> str:
    applied = [
        f'{one["name"]} ({one["target"]}, from the map {one["map"]})' for one in classifiers
    ]
    noun = 'The classifier' if len(applied) == 1 else 'The classifiers'
    return (
        f'{noun} {_joined(applied)}, trained beforehand with the group level of AnatNet, '
        f'{"was" if len(applied) == 1 else "were"} applied to the scan; what a model says is the '
        'mean over the networks of its cross-validation. Predictions are for research, not for '
        'clinical use.'
    )


def _joined(words: Sequence[str]) -> str:
    *first, last = [str(word) for word in words]
    return f'{", ".join(first)} and {last}' if first else last


_CITATION = re.compile(r'\[(@[\w-]+(?:;\s*@[\w-]+)*)\]')


def cited(text: str) -> list[Reference]:
    """Return the references that a text cites, in the order of their first mention."""
    by_key = {reference.key: reference for reference in REFERENCES}
    keys = [key for match in _CITATION.findall(text) for key in re.findall(r'@([\w-]+)', match)]
    return [by_key[key] for key in dict.fromkeys(keys) if key in by_key]


def reference_line(reference: Reference) -> str:
    """Write a reference as one line of plain text."""
    authors = reference.authors.removesuffix('.')
    return (
        f'{authors}. ({reference.year}). {reference.title}. {reference.journal}. '
        f'https://doi.org/{reference.doi}'
    )


def citation_markdown(text: str) -> str:
    """Return a methods text as Markdown with numbered citations and a list of references."""
    references = cited(text)
    numbers = {reference.key: number for number, reference in enumerate(references, 1)}
    body = _CITATION.sub(lambda match: _numbered(match, numbers), text)
    lines = [f'{number}. {reference_line(ref)}' for number, ref in enumerate(references, 1)]
    return f'{body.rstrip()}\n\n### References\n\n' + '\n'.join(lines) + '\n'


def citation_bibtex(references: Sequence[Reference] = REFERENCES) -> str:
    """Return references as BibTeX."""
    entries = []
    for ref in references:
        venue = 'booktitle' if ref.kind == 'inproceedings' else 'journal'
        authors = ref.authors.replace(' et al.', ' and others')
        authors = re.sub(r'\.,\s+', '. and ', authors)
        entries.append(
            f'@{ref.kind}{{{ref.key},\n  author = {{{authors}}},\n  title = {{{ref.title}}},\n'
            f'  {venue} = {{{ref.journal}}},\n  year = {{{ref.year}}},\n  doi = {{{ref.doi}}}\n}}'
        )
    return '\n\n'.join(entries) + '\n'


def _numbered(match: re.Match[str], numbers: Mapping[str, int]) -> str:
    keys = re.findall(r'@([\w-]+)', match.group(1))
    known = [str(numbers[key]) for key in keys if key in numbers]
    return f'[{", ".join(known)}]' if known else match.group(0)


def to_html(text: str) -> str:
    """Convert the small part of Markdown that methods texts use to HTML, everything escaped.

    Headings, paragraphs, numbered and bulleted lists, ``**bold**``, ``*emphasis*``, ``code`` and
    bare ``https://doi.org`` addresses; all else stays text.
    """
    blocks = []
    for block in re.split(r'\n\s*\n', text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        heading = re.match(r'(#{1,6})\s+(.*)', lines[0])
        if heading and len(lines) == 1:
            level = min(len(heading.group(1)) + 1, 6)
            blocks.append(f'<h{level}>{_inline(heading.group(2))}</h{level}>')
        elif all(re.match(r'\d+\.\s', line) for line in lines):
            items = ''.join(f'<li>{_inline(line.split(maxsplit=1)[1])}</li>' for line in lines)
            blocks.append(f'<ol>{items}</ol>')
        elif all(re.match(r'[-*]\s', line) for line in lines):
            items = ''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)
            blocks.append(f'<ul>{items}</ul>')
        else:
            blocks.append(f'<p>{_inline(" ".join(lines))}</p>')
    return '\n'.join(blocks)


def _inline(text: str) -> str:
    text = escape(text)
    text = re.sub(r'`([^`]+)`', r'<code>\1</code>', text)
    text = re.sub(r'\*\*([^*]+)\*\*', r'<strong>\1</strong>', text)
    text = re.sub(r'(?<!\*)\*([^*\s][^*]*)\*', r'<em>\1</em>', text)
    return re.sub(r'(https://doi\.org/[^\s<]+)', r'<a href="\1" rel="noreferrer">\1</a>', text)
