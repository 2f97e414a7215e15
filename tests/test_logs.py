# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bids_app.logs import add_log_file, close_logging, setup_logging


@pytest.fixture(autouse=True)
def _close():
    yield
    close_logging()


@pytest.mark.parametrize(('verbose', 'shown'), [(0, 1), (1, 2), (2, 3), (5, 3)])
def test_more_v_show_more(capsys, verbose, shown):
    setup_logging(verbose)
    logger = logging.getLogger('anatnet.test')
    for level in (logging.INFO, 15, logging.DEBUG):
        logger.log(level, 'message')
    assert capsys.readouterr().err.count('message') == shown


def test_file_holds_what_the_terminal_shows_and_more(tmp_path, capsys):
    setup_logging()
    add_log_file(tmp_path / 'logs' / 'anatnet.log')
    logging.getLogger('bids_app.part').log(15, 'detail')
    logging.getLogger('anatnet.part').warning('problem')
    text = (tmp_path / 'logs' / 'anatnet.log').read_text()
    assert 'detail' in text
    assert 'WARNING' in text
    shown = capsys.readouterr().err
    assert 'detail' not in shown
    assert 'WARNING: problem' in shown


def test_setting_up_twice_does_not_say_things_twice(capsys):
    setup_logging()
    setup_logging()
    logging.getLogger('anatnet').info('message')
    assert capsys.readouterr().err.count('message') == 1


def test_log_file_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / 'file').touch()
    setup_logging()
    add_log_file(tmp_path / 'file' / 'anatnet.log')
    assert 'Cannot write the log' in capsys.readouterr().err


def test_log_file_on_a_full_disk_is_one_warning(capsys):
    setup_logging()
    add_log_file(Path('/dev/full'))
    for number in range(3):
        logging.getLogger('anatnet').info('message %d', number)
    close_logging()
    text = capsys.readouterr().err
    assert text.count('Cannot write the log /dev/full any more (No space left on device)') == 1
    assert 'message 2' in text
    assert 'Traceback' not in text
