# SPDX-License-Identifier: Apache-2.0
"""The work folder holds what is being computed and what failed, and nothing else."""

from __future__ import annotations

import pytest
from small_app import App, head, nifti, pack


@pytest.mark.parametrize('named', [True, False])
def test_work_folder_is_empty_after_success_unless_it_is_to_be_kept(tmp_path, project_dir, named):
    app = App(tmp_path, project_dir)
    app.add('01', pack(nifti(head()).to_bytes()))
    app.add('bad', b'')
    if not named:  # it is ./work then, which is the same folder here
        app.work_option = ()

    def left():
        return {path.name for path in app.work.glob('anatnet_*/*_wf')}

    code, text = app.run('--modules', 'mask')
    assert code == 1, text
    assert left() == {'sub_bad_wf'}
    only = ('--modules', 'mask', '--participant-label', '01')
    code, text = app.run(*only, '--overwrite', '--debug', 'workdir')
    assert code == 0, text
    assert left() == {'sub_01_wf', 'sub_bad_wf'}
    code, text = app.run(*only, '--overwrite', '--clean-workdir')
    assert code == 0, text
    assert [path for path in app.work.rglob('*') if not path.is_dir()] == []
