# SPDX-License-Identifier: Apache-2.0
"""Read a scan of any origin, or say in one line why it cannot be used."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ImageError
from .grids import voxel_sizes
from .header import Geometry, choose_geometry

MIN_VOXELS_PER_AXIS = 8
THICK_SLICE_MM = 4.0
LARGE_GRID = 512**3
MAX_GRID = 10**9
MAX_SERIES = 4 * 10**9
MIN_FIELD_OF_VIEW_MM = 100.0
HEADER_BYTES = 348
MAX_OFFSET = 1 << 26
_BLOCK = 1 << 24
NIFTI_ENDINGS = ('.nii', '.nii.gz')
FREESURFER_ENDINGS = ('.mgz', '.mgh')


@dataclass
class Grid:
    """Shape and place of a scan, without its voxels.

    Attributes
    ----------
    path : Path
    shape : tuple of 3 int
    affine : ndarray, shape (4, 4)
        Voxel-to-world matrix in mm by the rule of :mod:`bids_app.images.header`.
    header : nibabel.Nifti1Header
        Header for derivatives on this grid.
    notes : list of str
        What was unusual, one sentence each.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    header: Any
    notes: list[str] = field(default_factory=list)


@dataclass
class LoadedSeries(Grid):
    """Volumes of one file in memory.

    Attributes
    ----------
    data : ndarray of float32, shape (*shape, n)
        Voxels in the axis order of the file, all finite.
    """

    data: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32))


@dataclass
class LoadedScan(Grid):
    """A scan in memory.

    Attributes
    ----------
    data : ndarray of float32, shape `shape`
        Voxels in the axis order of the file, all finite.
    """

    data: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


def _describe_non_nifti(path: Path) -> str:
    """Say in words what a file that is no NIfTI image probably is."""
    with path.open('rb') as stream:
        head = stream.read(512)
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        return 'is a web page, not an image (a failed download); download it again'
    if b'git-annex' in head or b'/annex/objects' in head:
        return 'is a git-annex pointer; fetch the data with "datalad get"'
    if text.startswith(b'version https://git-lfs'):
        return 'is a Git LFS pointer; fetch the data with "git lfs pull"'
    is_gzip = head[:2] == b'\x1f\x8b'
    if path.name.endswith('.gz') and not is_gzip and len(head) >= HEADER_BYTES:
        return 'is not gzip-compressed although its name says so; rename or compress it'
    if not path.name.endswith('gz') and is_gzip:
        return 'is gzip-compressed; rename it to .nii.gz'
    size = path.stat().st_size
    if is_gzip and _unpacks_to_less_than_a_header(path):
        return f'is cut off ({size} bytes); copy or download it again'
    if size < HEADER_BYTES and not is_gzip:
        return f'is too short for an image ({size} bytes); fetch or copy the file again'
    return 'is not a NIfTI image; convert the scan again from DICOM'


def _unpacks_to_less_than_a_header(path: Path) -> bool:
    try:
        with gzip.open(path) as stream:
            return len(stream.read(HEADER_BYTES)) < HEADER_BYTES
    except (EOFError, OSError, zlib.error):
        return True


def check_file(path: Path) -> None:
    """Raise ImageError for whatever can be seen without reading the image."""
    if not path.exists():
        if path.is_symlink():
            raise ImageError(
                f'{path}: the link points nowhere; fetch the data (with "datalad get" if it is a '
                'DataLad data set)'
            )
        raise ImageError(f'{path}: no such file; check the path')
    if path.is_dir():
        raise ImageError(f'{path}: is a folder, not an image')
    if not path.is_file():
        raise ImageError(f'{path}: is a pipe or a device, not an image')
    if not path.name.endswith(NIFTI_ENDINGS + FREESURFER_ENDINGS):
        raise ImageError(f'{path}: unknown kind of image; give .nii, .nii.gz or .mgz')
    if not os.access(path, os.R_OK):
        raise ImageError(f'{path}: cannot be read; check its permissions (chmod u+r)')
    if path.stat().st_size == 0:
        raise ImageError(f'{path}: is empty (0 bytes); fetch or copy the file again')


def _check_claims(path: Path) -> None:
    """Raise ImageError where a NIfTI header makes nibabel read without end.

    nibabel reads everything before the voxels when it opens a file, as extensions of whatever
    length they say they have.
    """
    import nibabel as nib

    if not path.name.endswith(NIFTI_ENDINGS):
        return
    try:
        with gzip.open(path) if path.name.endswith('.gz') else path.open('rb') as stream:
            head = stream.read(540)
            first = {int.from_bytes(head[:4], order) for order in ('little', 'big')}
            kind = nib.Nifti2Header if 540 in first else nib.Nifti1Header
            size = kind.sizeof_hdr
            if size not in first or len(head) < size:
                return  # not NIfTI, as is said later
            header = kind(head[:size], check=False)
            offset = float(header['vox_offset'])
            if not 0 <= offset <= MAX_OFFSET:
                raise ImageError(
                    f'{path}: the header is damaged (voxels are said to begin at byte '
                    f'{offset:g}); convert the scan again'
                )
            stream.seek(size)
            place = size + 4
            if stream.read(4)[:1] in (b'', b'\0'):
                return
            while offset - place >= 16:
                field = stream.read(8)
                order = 'little' if header.endianness == '<' else 'big'
                length = int.from_bytes(field[:4], order, signed=True)
                if len(field) < 8 or length < 8 or place + length > offset:
                    raise ImageError(
                        f'{path}: the header is damaged (an extension of {length} bytes); '
                        'convert the scan again'
                    )
                stream.seek(length - 8, os.SEEK_CUR)
                place += length
    except (EOFError, OSError, zlib.error):
        return  # said by who opens it


def open_image(path: Path) -> Any:
    """Open an image with nibabel, lazily.

    Parameters
    ----------
    path : Path
        NIfTI or FreeSurfer file.

    Returns
    -------
    nibabel.Nifti1Image or nibabel.MGHImage

    Raises
    ------
    ImageError
        If the file is no such image, or its header cannot be true.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    check_file(path)
    _check_claims(path)
    try:
        image = nib.load(path)
    except (ImageFileError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise ImageError(f'{path}: cannot be read; check its permissions') from error
        raise ImageError(f'{path}: {_describe_non_nifti(path)}') from error
    except (HeaderDataError, ValueError, KeyError, OverflowError, TypeError) as error:
        raise ImageError(
            f'{path}: the header is damaged ({_one_line(error)}); convert the scan again'
        ) from error
    if not isinstance(image, nib.Nifti1Image | nib.MGHImage):
        raise ImageError(f'{path}: is not a NIfTI image; convert the scan again from DICOM')
    return image


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:120]


def _spatial_shape(image: Any, path: Path, notes: list[str]) -> tuple[int, int, int]:
    """Return the shape of one volume after checking that there is one."""
    shape = tuple(int(n) for n in image.shape)
    if len(shape) < 3 or min(shape[:3]) < MIN_VOXELS_PER_AXIS:
        shown = ' x '.join(str(n) for n in shape)
        raise ImageError(
            f'{path}: {shown} voxels are not a volume (at least {MIN_VOXELS_PER_AXIS} along each '
            'axis); is it a localiser or a single slice?'
        )
    volumes = math.prod(shape[3:])
    if volumes < 1 or math.prod(shape[:3]) > MAX_GRID:
        shown = ' x '.join(str(n) for n in shape)
        raise ImageError(
            f'{path}: {shown} voxels cannot be processed (limit {MAX_GRID:.0e} for one volume); '
            'resample the scan or correct its header'
        )
    if volumes > 1:
        notes.append(f'the file holds {volumes} volumes; the first was used')
    return shape[:3]


def _geometry(image: Any, shape: tuple[int, int, int], path: Path) -> Geometry:
    """Apply the header rule to the header as it is in the file."""
    import nibabel as nib
    from nibabel.openers import ImageOpener

    if isinstance(image, nib.MGHImage):
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_sform(image.affine, code=1)
        header['pixdim'][1:4] = image.header.get_zooms()[:3]
        return choose_geometry(header, shape, path)
    # nibabel repairs a pixdim of 0 to 1 while loading; the rule must see the 0.
    with ImageOpener(path) as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    return choose_geometry(header, shape, path)


def read_grid(path: Path | str) -> Grid:
    """Read where the voxels of a scan are, without its voxels.

    Parameters
    ----------
    path : Path or str
        NIfTI (``.nii``, ``.nii.gz``) or FreeSurfer (``.mgz``) file.

    Returns
    -------
    Grid

    Raises
    ------
    ImageError
        One line with what is wrong, where, and what to do.
    """
    path = Path(path)
    notes: list[str] = []
    image = open_image(path)
    shape = _spatial_shape(image, path, notes)
    geometry = _geometry(image, shape, path)
    return Grid(path, shape, geometry.affine, geometry.header, [*notes, *geometry.notes])


def _unpack(image: Any, path: Path, volumes: int = 1) -> io.BytesIO:
    """Unpack a compressed image, and no more than its header says there is.

    What follows the voxels is read to the end, which checks the checksum of the file, but not
    kept, and left alone where it is longer than the image.
    """
    offset, size = _place_of_voxels(image)
    size *= volumes
    content = io.BytesIO()
    beyond = 0
    with gzip.open(path) as stream:
        while block := stream.read(_BLOCK):
            room = offset + size + _BLOCK - content.tell()  # FreeSurfer puts fields at the end
            content.write(block[:room])
            beyond += len(block) - len(block[:room])
            if beyond > size:
                break
    _check_length(content.tell() - offset, size)
    content.seek(0)
    return content


def _place_of_voxels(image: Any) -> tuple[int, int]:
    """Return where the voxels of the first volume begin and how long they are, in bytes."""
    voxels = math.prod(int(n) for n in image.shape[:3])  # those of FreeSurfer's are 32-bit
    return int(image.dataobj.offset), voxels * image.get_data_dtype().itemsize


def _check_length(there: int, wanted: int) -> None:
    """Raise OSError before nibabel makes room for what is not there."""
    if there < wanted:
        raise OSError(f'Expected {wanted} bytes, got {max(there, 0)} bytes')


def read_voxels(
    image: Any, path: Path, notes: list[str], dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """Read the first volume as an array of floats, infinities and NaN included.

    Parameters
    ----------
    image : nibabel.Nifti1Image or nibabel.MGHImage
        From :func:`open_image`; at most :data:`MAX_GRID` voxels per volume.
    path : Path
        Its file.
    notes : list of str
        Gets what was unusual.
    dtype : type
        float32, or float64 where large whole numbers, such as labels, must stay exact.

    Raises
    ------
    ImageError
        If the file is cut off or damaged, or holds a colour picture.
    """
    stored = image.get_data_dtype()
    if stored.fields is not None:
        raise ImageError(
            f'{path}: is a colour picture ({"+".join(stored.names)}), not a scan; export the '
            'scan itself'
        )
    is_complex = stored.kind == 'c'
    kind = np.result_type(dtype, np.complex64) if is_complex else dtype
    single = math.prod(image.shape[3:]) == 1
    try:
        with np.errstate(all='ignore'):
            if single and path.name.endswith('gz'):  # .nii.gz, .mgz
                image = type(image).from_stream(_unpack(image, path))
            elif not path.name.endswith('gz'):
                offset, size = _place_of_voxels(image)
                _check_length(path.stat().st_size - offset, size)
            if single:
                data = np.asarray(image.dataobj, dtype=kind).reshape(image.shape[:3])
            else:
                data = np.asarray(image.dataobj[(..., *(0,) * (len(image.shape) - 3))])
            # Values beyond float32 become infinite and are counted with the others.
            data = np.abs(data) if is_complex else data
            data = np.ascontiguousarray(data, dtype=dtype)
    except MemoryError as error:
        raise ImageError(
            f'{path}: not enough memory to read {image.shape}; give the run more memory'
        ) from error
    except (EOFError, OSError, OverflowError, ValueError, zlib.error) as error:
        if 'got 0 bytes' in str(error):
            raise ImageError(
                f'{path}: holds a header but no voxels; fetch or copy the file again'
            ) from error
        raise ImageError(
            f'{path}: is cut off or damaged ({_one_line(error)}); copy or download it again'
        ) from error
    if is_complex:
        notes.append('the scan is complex; its magnitude was used')
    if np.may_share_memory(data, getattr(image.dataobj, '_dataobj', np.empty(0))):
        data = data.copy()
    return data


def load_series(path: Path | str) -> LoadedSeries:
    """Read all volumes of a file, or say in one line why that cannot be.

    Parameters
    ----------
    path : Path or str
        NIfTI file of three or four dimensions.

    Returns
    -------
    LoadedSeries
        float32 in the axis order of the file; NaN and infinity are 0.

    Raises
    ------
    ImageError
        As :func:`load_scan`, and if the file has more than four dimensions.
    """
    path = Path(path)
    notes: list[str] = []
    image = open_image(path)
    shape = _spatial_shape(image, path, [])
    volumes = math.prod(image.shape[3:])
    shown = ' x '.join(str(n) for n in image.shape)
    if len(image.shape) > 4 and volumes != image.shape[3]:
        raise ImageError(f'{path}: {shown} voxels are not a series of volumes; split the file')
    dtype = image.get_data_dtype()
    if dtype.kind not in 'iuf':
        raise ImageError(f'{path}: holds {dtype} values, not magnitudes; export the series again')
    if math.prod(shape) * volumes > MAX_SERIES:
        raise ImageError(f'{path}: {shown} voxels cannot be processed (limit {MAX_SERIES:.0e})')
    geometry = _geometry(image, shape, path)
    notes.extend(geometry.notes)
    try:
        with np.errstate(all='ignore'):
            if path.name.endswith('gz'):
                image = type(image).from_stream(_unpack(image, path, volumes))
            else:
                offset, size = _place_of_voxels(image)
                _check_length(path.stat().st_size - offset, size * volumes)
            data = np.array(image.dataobj, dtype=np.float32).reshape(*shape, volumes)
    except MemoryError as error:
        raise ImageError(
            f'{path}: not enough memory to read {shown} voxels; give the run more memory'
        ) from error
    except (EOFError, OSError, OverflowError, ValueError, zlib.error) as error:
        raise ImageError(
            f'{path}: is cut off or damaged ({_one_line(error)}); copy or download it again'
        ) from error
    bad = ~np.isfinite(data)
    if bad.any():
        notes.append(f'{int(bad.sum())} values are NaN or infinite and were set to 0')
        data[bad] = 0
    if data.min() == data.max():
        raise ImageError(f'{path}: the same value everywhere; convert the series from DICOM again')
    return LoadedSeries(path, shape, geometry.affine, geometry.header, notes, data)


def count_volumes(path: Path | str) -> int:
    """Count the volumes of a file from its header; raises ImageError as :func:`read_grid`."""
    return math.prod(int(n) for n in open_image(Path(path)).shape[3:])


def _note_scaling(image: Any, notes: list[str]) -> None:
    header = image.header
    if 'scl_slope' not in header:
        return
    with np.errstate(all='ignore'):
        # nibabel resets the fields of a loaded header; the values in use are kept here.
        slope = float(getattr(image.dataobj, 'slope', 1.0))
    if slope < 0:
        notes.append(f'scl_slope is negative ({slope:g}): dark and bright are exchanged')


def _checked_values(data: np.ndarray, path: Path, notes: list[str]) -> np.ndarray:
    """Replace what is not finite; raise ImageError if there is no picture."""
    with np.errstate(all='ignore'):
        total = float(data.sum(dtype=np.float64))
    if not np.isfinite(total):
        bad = ~np.isfinite(data)
        count = int(bad.sum())
        if count == data.size:
            raise ImageError(f'{path}: no voxel has a finite value; convert the scan again')
        if count:
            data = np.where(bad, np.float32(0), data)
            share = 100 * count / data.size
            notes.append(f'{count} voxels ({share:.2g} %) are NaN or infinite and were set to 0')
    low, high = float(data.min()), float(data.max())
    if low == high:
        what = 'only zeros' if low == 0 else f'the same value ({low:g}) everywhere'
        raise ImageError(f'{path}: holds {what}; convert the scan again from DICOM')
    background = 0.0 if low <= 0 <= high and np.count_nonzero(data) < data.size / 2 else low
    filled = np.count_nonzero(data != background) / data.size
    if filled < 1e-3:
        raise ImageError(
            f'{path}: only {100 * filled:.2g} % of the voxels hold a signal; convert the scan '
            'again from DICOM'
        )
    sample = data.reshape(-1)[:: max(data.size // 100_000, 1)]
    if len(np.unique(sample)) <= 8:
        notes.append('the scan has no more than 8 grey values; is it a mask or a label map?')
    if np.count_nonzero(sample < 0) > 0.01 * sample.size and background != low:
        notes.append(f'the scan has negative intensities (down to {low:.4g})')
    return data


def _note_size(shape: tuple[int, int, int], affine: np.ndarray, path: Path, notes: list[str]):
    """Comment on slices, field of view and size; raise ImageError beyond what can be done."""
    sizes = voxel_sizes(affine)
    if sizes.max() > THICK_SLICE_MM:
        notes.append(
            f'slices are {sizes.max():.3g} mm thick (more than {THICK_SLICE_MM:g} mm): results '
            'are less accurate, small structures most'
        )
    extent = sizes * np.array(shape)
    shown = ' x '.join(f'{length:.0f}' for length in extent)
    if np.prod(extent) > LARGE_GRID or extent.max() > 1000:
        raise ImageError(
            f'{path}: the field of view is {shown} mm, far more than a head; check the voxel '
            'sizes in the header or crop the scan'
        )
    if extent.min() < MIN_FIELD_OF_VIEW_MM:
        notes.append(f'the field of view is only {shown} mm: parts of the brain may be missing')
    if np.prod(shape, dtype=float) > LARGE_GRID:
        notes.append(
            f'{" x ".join(str(n) for n in shape)} voxels are very many: expect long run times '
            'and high memory use'
        )


def load_scan(path: Path | str) -> LoadedScan:
    """Read a scan, or say in one line why it cannot be used.

    Parameters
    ----------
    path : Path or str
        NIfTI (``.nii``, ``.nii.gz``) or FreeSurfer (``.mgz``) file.

    Returns
    -------
    LoadedScan
        The first volume as float32 in the axis order of the file; NaN and infinity are 0. What
        was unusual about the file is in its notes.

    Raises
    ------
    ImageError
        If the file is no image (an HTML page, empty, a pointer without data), is cut off or
        unreadable, has a damaged header or impossible voxel sizes, is no volume, or holds no
        picture (constant, all zero, nothing finite).
    """
    path = Path(path)
    notes: list[str] = []
    image = open_image(path)
    shape = _spatial_shape(image, path, notes)
    geometry = _geometry(image, shape, path)
    notes.extend(geometry.notes)
    _note_size(shape, geometry.affine, path, notes)
    data = read_voxels(image, path, notes)
    _note_scaling(image, notes)
    data = _checked_values(data, path, notes)
    return LoadedScan(path, shape, geometry.affine, geometry.header, notes, data)
