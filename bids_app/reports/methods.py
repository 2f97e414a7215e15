# SPDX-License-Identifier: Apache-2.0
"""The methods section of a report: text to copy into a paper, with its references.

The text is in the public domain (CC0), so that it may be copied word for word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Reference:
    """One publication; ``kind`` is the type of its BibTeX entry."""

    key: str
    authors: str
    year: int
    title: str
    journal: str
    doi: str
    kind: str = 'article'


REFERENCES = (
    Reference(
        'bids',
        'Gorgolewski, K.J. et al.',
        2016,
        'The brain imaging data structure, a format for organizing and describing outputs of '
        'neuroimaging experiments',
        'Scientific Data 3, 160044',
        '10.1038/sdata.2016.44',
    ),
    Reference(
        'bidsapps',
        'Gorgolewski, K.J. et al.',
        2017,
        'BIDS Apps: improving ease of use, accessibility, and reproducibility of neuroimaging '
        'data analysis methods',
        'PLOS Computational Biology 13(3), e1005209',
        '10.1371/journal.pcbi.1005209',
    ),
    Reference(
        'pybids',
        'Yarkoni, T. et al.',
        2019,
        'PyBIDS: Python tools for BIDS datasets',
        'Journal of Open Source Software 4(40), 1294',
        '10.21105/joss.01294',
    ),
    Reference(
        'nipype',
        'Gorgolewski, K. et al.',
        2011,
        'Nipype: a flexible, lightweight and extensible neuroimaging data processing framework '
        'in Python',
        'Frontiers in Neuroinformatics 5, 13',
        '10.3389/fninf.2011.00013',
    ),
    Reference(
        'n4',
        'Tustison, N.J. et al.',
        2010,
        'N4ITK: improved N3 bias correction',
        'IEEE Transactions on Medical Imaging 29(6), 1310-1320',
        '10.1109/TMI.2010.2046908',
    ),
    Reference(
        'antsx',
        'Tustison, N.J. et al.',
        2021,
        'The ANTsX ecosystem for quantitative biological and medical imaging',
        'Scientific Reports 11, 9068',
        '10.1038/s41598-021-87564-6',
    ),
    Reference(
        'unet',
        'Çiçek, Ö. et al.',
        2016,
        '3D U-Net: learning dense volumetric segmentation from sparse annotation',
        'MICCAI 2016, LNCS 9901, 424-432',
        '10.1007/978-3-319-46723-8_49',
        'inproceedings',
    ),
    Reference(
        'synthseg',
        'Billot, B. et al.',
        2023,
        'SynthSeg: segmentation of brain MRI scans of any contrast and resolution without '
        'retraining',
        'Medical Image Analysis 86, 102789',
        '10.1016/j.media.2023.102789',
    ),
    Reference(
        'deepnat',
        'Wachinger, C., Reuter, M., Klein, T.',
        2018,
        'DeepNAT: deep convolutional neural network for segmenting neuroanatomy',
        'NeuroImage 170, 434-445',
        '10.1016/j.neuroimage.2017.02.035',
    ),
    Reference(
        'aseg',
        'Fischl, B. et al.',
        2002,
        'Whole brain segmentation: automated labeling of neuroanatomical structures in the '
        'human brain',
        'Neuron 33(3), 341-355',
        '10.1016/S0896-6273(02)00569-X',
    ),
    Reference(
        'mriqc',
        'Esteban, O. et al.',
        2017,
        'MRIQC: advancing the automatic prediction of image quality in MRI from unseen sites',
        'PLOS ONE 12(9), e0184661',
        '10.1371/journal.pone.0184661',
    ),
    Reference(
        'efc',
        'Atkinson, D. et al.',
        1997,
        'Automatic correction of motion artifacts in magnetic resonance images using an entropy '
        'focus criterion',
        'IEEE Transactions on Medical Imaging 16(6), 903-910',
        '10.1109/42.650886',
    ),
    Reference(
        'cjv',
        'Ganzetti, M., Wenderoth, N., Mantini, D.',
        2016,
        'Intensity inhomogeneity correction of structural MR images: a data-driven approach to '
        'define input algorithm parameters',
        'Frontiers in Neuroinformatics 10, 10',
        '10.3389/fninf.2016.00010',
    ),
    Reference(
        'cnr',
        'Magnotta, V.A., Friedman, L., FIRST BIRN',
        2006,
        'Measurement of signal-to-noise and contrast-to-noise in the fBIRN multicenter imaging '
        'study',
        'Journal of Digital Imaging 19(2), 140-147',
        '10.1007/s10278-006-0264-x',
    ),
)
"""All publications that a text may cite, in the order of the pipeline."""


def methods_text(
    version: str,
    models: Sequence[Mapping[str, Any]] = (),
    modules: Sequence[str] = ('mask', 'tissue', 'wholebrain'),
    *,
    sloppy: bool = False,
    low_mem: bool = False,
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
    """
    paragraphs = [
        f'Anatomical images were processed with AnatNet {version}, a BIDS App [@bids; @bidsapps] '
        'that is built on Nipype [@nipype] and PyBIDS [@pybids].',
        'Each T1-weighted image was reoriented to RAS axis order and resampled to 1 mm isotropic '
        'voxels. The brain was located on the whole head at 3 mm by a three-dimensional residual '
        'U-Net [@unet] that was trained on images synthesised from label maps, so that it is '
        'insensitive to contrast, resolution and presence of the skull [@synthseg].',
    ]
    results = []
    if 'tissue' in modules:
        results.append('probability maps of grey matter, white matter and cerebrospinal fluid')
    if 'wholebrain' in modules:
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
    else:
        paragraphs[-1] += ' The brain mask was resampled to the grid of the input image.'
    weights = ', '.join(
        f'{model.get("name", "?")}'
        + (f' version {model["version"]}' if model.get('version') else '')
        + (f' (SHA-256 {str(model["sha256"])[:12]})' if model.get('sha256') else '')
        for model in models
    )
    if weights:
        paragraphs.append(f'Network weights: {weights}.')
    return '\n\n'.join(paragraphs) + '\n'


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
