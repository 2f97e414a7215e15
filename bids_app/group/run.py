# SPDX-License-Identifier: Apache-2.0
"""The group level: reads the derivatives, writes tables, page and, if asked, statistics."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from bids_app import __version__
from bids_app.bids.files import atomic_write_text, write_if_different
from bids_app.errors import NoInputError
from bids_app.group import phenotypes
from bids_app.group.analyses import check_request, classification, linear_model
from bids_app.group.assessment import assess_study
from bids_app.group.derivatives import Study, load_study
from bids_app.group.homogeneity import Homogeneity, measure_homogeneity
from bids_app.group.report import write_group_page
from bids_app.group.results import AnalysisResult
from bids_app.group.tables import read_measurements, write_tables

if TYPE_CHECKING:
    from bids_app.config import RunConfig

LOGGER = logging.getLogger('anatnet.group')


def run_group(config: RunConfig) -> int:
    """Make tables, quality scores and page of a study.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` holds the finished participants; ``bids_dir`` may be gone.

    Returns
    -------
    int
        0.

    Raises
    ------
    NoInputError
        If no session is finished.
    UsageError
        If a label, column or formula does not fit the data.
    """
    study = load_study(
        config.output_dir, config.bids_dir, config.participant_label, config.session_label
    )
    if not study.done:
        first = next(record for record in study.sessions if record.status != 'done')
        raise NoInputError(
            f'none of the {len(study.sessions)} sessions in {config.output_dir} is finished '
            f'({first.prefix}: {first.reason}); run the participant level first'
        )
    if config.dry_run:
        for record in study.sessions:
            print(f'{record.prefix}\t{record.status}\t{record.reason}'.rstrip())
        return 0
    contrasts = check_request(config, study)
    _prepare(config)
    counts = Counter(record.status for record in study.sessions)
    LOGGER.info(
        'AnatNet %s: %d sessions in %s: %s', __version__, len(study.sessions), config.output_dir,
        ', '.join(f'{number} {status}' for status, number in sorted(counts.items())),
    )  # fmt: skip
    phenotypes.keep_copy(study)
    measured = read_measurements(study)
    homogeneity = _homogeneity(config, study)
    assessment = assess_study(study, measured, homogeneity)
    for path in write_tables(study, measured, assessment):
        LOGGER.info('Wrote %s', path)
    notes = _notes(study, homogeneity)
    known = (config, study, measured, assessment, homogeneity)
    page = write_group_page(*known, notes=notes)
    # Statistics take long and may fail: the page without them is there before.
    if analyses := _analyses(config, study, contrasts):
        write_group_page(*known, analyses, notes)
    for note in (*assessment.notes, *notes):
        LOGGER.info('%s', note)
    ratings = Counter(rating.rating for rating in assessment.ratings if rating is not None)
    LOGGER.info(
        'Quality: %s', ', '.join(f'{ratings[word]} {word}' for word in ('ok', 'look', 'doubtful'))
    )
    LOGGER.info('Page: %s', page)
    return 0


def _prepare(config: RunConfig) -> None:
    """Check that the output can be written, open the log and keep the configuration."""
    from bids_app.bids.dataset import BIDSIGNORE, check_output_dir
    from bids_app.logs import add_log_file

    check_output_dir(config.output_dir)
    try:
        write_if_different(config.output_dir / '.bidsignore', BIDSIGNORE)
    except OSError as error:
        LOGGER.warning('Cannot write %s (%s); going on', error.filename, error.strerror)
    add_log_file(config.log_dir / 'anatnet.log', config.verbose)
    atomic_write_text(config.log_dir / 'config.toml', config.to_toml())


def _homogeneity(config: RunConfig, study: Study) -> Homogeneity | None:
    """Compare the smoothed maps of grey matter, if there are any."""
    choice = study.map_choice('vbm_gm')
    if choice is None:
        return None
    kind, fwhm, space, res = choice
    LOGGER.info('Comparing grey matter maps (%s, %g mm)', space, fwhm)

    def progress(number: int, of: int) -> None:
        if number % 200 == 0:
            LOGGER.info('%d of %d maps', number, of)

    maps = study.maps(kind, fwhm, space, res)
    return measure_homogeneity(maps, fwhm, config.nprocs, progress)


def _notes(study: Study, homogeneity: Homogeneity | None) -> list[str]:
    """Say what is missing."""
    notes = []
    if homogeneity is None:
        notes.append(
            'The resemblance of grey matter maps was not computed: there are no modulated maps '
            '(module vbm of the participant level)'
        )
    else:
        without = len(study.done) - int(homogeneity.used.sum())
        if without:
            notes.append(f'{without} finished sessions have no grey matter map to compare')
    notes += _mixtures(study)
    known = phenotypes.load(study.output_dir, study.bids_dir, study.sessions).participants
    if not known:
        notes.append('There is no participants.tsv: age, sex and groups are not known')
    strangers = sorted({record.participant_id for record in study.sessions} - set(known))
    if known and strangers:
        notes.append(f'Not in participants.tsv: {_listed(strangers)}')
    return notes


def _mixtures(study: Study) -> list[str]:
    """Say which sessions were measured in another way than the others."""
    notes = []
    others = [
        f'{record.prefix} ({name})'
        for record in study.done
        if (name := record.run.get('reference', 'T1w')) != 'T1w'
    ]
    if others:
        notes.append(
            'Computed on another image than a T1w, so that volumes must not be compared with the '
            f'others: {_listed(others)}'
        )
    models: dict[str, int] = Counter(
        record.run.get('report', {}).get('tissue_model', {}).get('name', 'none')
        for record in study.done
    )
    if len(models) > 1:
        counts = ', '.join(f'{name} in {number}' for name, number in sorted(models.items()))
        notes.append(f'Tissue maps were made by different tissue models: {counts} sessions')
    engines = Counter(
        record.state.options.get('segmentation', 'default')
        for record in study.done
        if record.state is not None
    )
    if len(engines) > 1:
        counts = ', '.join(f'{name} in {number}' for name, number in sorted(engines.items()))
        notes.append(f'Structures were labelled in different ways: {counts} sessions')
    return notes


def _listed(labels: list[str]) -> str:
    return ', '.join(labels[:5]) + (f' and {len(labels) - 5} more' if len(labels) > 5 else '')


def _analyses(config: RunConfig, study: Study, contrasts: tuple[str, ...]) -> list[AnalysisResult]:
    """Run the analyses that were asked for."""
    results = []
    if config.formula:
        results.append(linear_model(config, study, contrasts))
    if config.classify:
        results.append(classification(config, study))
    for result in results:
        for line in (*result.summary, *result.notes):
            LOGGER.info('%s: %s', result.title, line)
    return results
