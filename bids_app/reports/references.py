# SPDX-License-Identifier: Apache-2.0
"""The publications that a methods text may cite."""

from __future__ import annotations

from dataclasses import dataclass


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
        'deepanat',
        'Li, Z. et al.',
        2023,
        'DeepAnat: synthesizing T1-weighted images from diffusion MRI',
        'Medical Image Analysis 86, 102744',
        '10.1016/j.media.2023.102744',
    ),
    Reference(
        'wls',
        'Veraart, J., Sijbers, J., Sunaert, S., Leemans, A., & Jeurissen, B.',
        2013,
        'Weighted linear least squares estimation of diffusion MRI parameters: strengths, '
        'limitations, and pitfalls',
        'NeuroImage 81, 335-346',
        '10.1016/j.neuroimage.2013.05.028',
    ),
    Reference(
        'fa',
        'Basser, P.J., & Pierpaoli, C.',
        1996,
        'Microstructural and physiological features of tissues elucidated by '
        'quantitative-diffusion-tensor MRI',
        'Journal of Magnetic Resonance, Series B 111(3), 209-219',
        '10.1006/jmrb.1996.0086',
    ),
    Reference(
        'mppca',
        'Veraart, J. et al.',
        2016,
        'Denoising of diffusion MRI using random matrix theory',
        'NeuroImage 142, 394-406',
        '10.1016/j.neuroimage.2016.08.016',
    ),
    Reference(
        'nmi',
        'Studholme, C., Hill, D.L.G., & Hawkes, D.J.',
        1999,
        'An overlap invariant entropy measure of 3D medical image alignment',
        'Pattern Recognition 32(1), 71-86',
        '10.1016/S0031-3203(98)00091-0',
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
        'shapedna',
        'Reuter, M., Wolter, F.-E., Peinecke, N.',
        2006,
        'Laplace-Beltrami spectra as Shape-DNA of surfaces and solids',
        'Computer-Aided Design 38(4), 342-366',
        '10.1016/j.cad.2005.10.011',
    ),
    Reference(
        'densecrf',
        'Kraehenbuehl, P., Koltun, V.',
        2011,
        'Efficient inference in fully connected CRFs with Gaussian edge potentials',
        'Advances in Neural Information Processing Systems 24, 109-117',
        '10.48550/arXiv.1210.5644',
        'inproceedings',
    ),
    Reference(
        'oasis',
        'Marcus, D.S. et al.',
        2007,
        'Open Access Series of Imaging Studies (OASIS): cross-sectional MRI data in young, '
        'middle aged, nondemented, and demented older adults',
        'Journal of Cognitive Neuroscience 19(9), 1498-1507',
        '10.1162/jocn.2007.19.9.1498',
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
    Reference(
        'mni2009',
        'Fonov, V.S. et al.',
        2009,
        'Unbiased nonlinear average age-appropriate brain templates from birth to adulthood',
        'NeuroImage 47(Suppl. 1), S102',
        '10.1016/S1053-8119(09)70884-5',
    ),
    Reference(
        'mni2011',
        'Fonov, V. et al.',
        2011,
        'Unbiased average age-appropriate atlases for pediatric studies',
        'NeuroImage 54(1), 313-327',
        '10.1016/j.neuroimage.2010.07.033',
    ),
    Reference(
        'templateflow',
        'Ciric, R. et al.',
        2022,
        'TemplateFlow: FAIR-sharing of multi-scale, multi-species brain models',
        'Nature Methods 19, 1568-1571',
        '10.1038/s41592-022-01681-2',
    ),
    Reference(
        'symnet',
        'Mok, T.C.W., Chung, A.C.S.',
        2020,
        'Fast symmetric diffeomorphic image registration with convolutional neural networks',
        'IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR), 4643-4652',
        '10.1109/CVPR42600.2020.00470',
        'inproceedings',
    ),
    Reference(
        'dartel',
        'Ashburner, J.',
        2007,
        'A fast diffeomorphic image registration algorithm',
        'NeuroImage 38(1), 95-113',
        '10.1016/j.neuroimage.2007.07.007',
    ),
    Reference(
        'demons',
        'Vercauteren, T. et al.',
        2008,
        'Symmetric log-domain diffeomorphic registration: a demons-based approach',
        'MICCAI 2008, LNCS 5241, 754-761',
        '10.1007/978-3-540-85988-8_90',
        'inproceedings',
    ),
    Reference(
        'syn',
        'Avants, B.B. et al.',
        2008,
        'Symmetric diffeomorphic image registration with cross-correlation: evaluating automated '
        'labeling of elderly and neurodegenerative brain',
        'Medical Image Analysis 12(1), 26-41',
        '10.1016/j.media.2007.06.004',
    ),
    Reference(
        'vbm',
        'Ashburner, J., Friston, K.J.',
        2000,
        'Voxel-based morphometry: the methods',
        'NeuroImage 11(6), 805-821',
        '10.1006/nimg.2000.0582',
    ),
    Reference(
        'modulation',
        'Good, C.D. et al.',
        2001,
        'A voxel-based morphometric study of ageing in 465 normal adult human brains',
        'NeuroImage 14(1), 21-36',
        '10.1006/nimg.2001.0786',
    ),
    Reference(
        'deepmriprep',
        'Fisch, L. et al.',
        2026,
        'deepmriprep: voxel-based morphometry preprocessing via deep neural networks',
        'Nature Computational Science',
        '10.1038/s43588-026-00953-7',
    ),
    Reference(
        'freedmanlane',
        'Freedman, D., Lane, D.',
        1983,
        'A nonstochastic interpretation of reported significance levels',
        'Journal of Business & Economic Statistics 1(4), 292-298',
        '10.1080/07350015.1983.10509354',
    ),
    Reference(
        'permutation',
        'Winkler, A.M. et al.',
        2014,
        'Permutation inference for the general linear model',
        'NeuroImage 92, 381-397',
        '10.1016/j.neuroimage.2014.01.060',
    ),
    Reference(
        'tfce',
        'Smith, S.M., Nichols, T.E.',
        2009,
        'Threshold-free cluster enhancement: addressing problems of smoothing, threshold '
        'dependence and localisation in cluster inference',
        'NeuroImage 44(1), 83-98',
        '10.1016/j.neuroimage.2008.03.061',
    ),
    Reference(
        'fdr',
        'Benjamini, Y., Hochberg, Y.',
        1995,
        'Controlling the false discovery rate: a practical and powerful approach to multiple '
        'testing',
        'Journal of the Royal Statistical Society B 57(1), 289-300',
        '10.1111/j.2517-6161.1995.tb02031.x',
    ),
)
"""All publications that a text may cite, in the order of the pipeline."""
