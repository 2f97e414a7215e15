# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app.interfaces.anat import Stopwatch, borrowed_gpu, read_info, write_info


@pytest.mark.parametrize(('device', 'returned'), [('cpu', 0), ('cuda', 1), ('cuda:1', 1)])
def test_memory_of_the_gpu_is_returned_even_after_a_failure(monkeypatch, device, returned):
    calls = []
    cuda = SimpleNamespace(empty_cache=lambda: calls.append(device))
    monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(cuda=cuda))
    with pytest.raises(MemoryError), borrowed_gpu(device):
        raise MemoryError
    assert len(calls) == returned


def test_info_holds_findings_and_costs_as_plain_json(tmp_path):
    info = {'confidence': np.float32(0.5), 'shape': np.array([1, 2]), 'file': tmp_path}
    path = write_info(tmp_path, Stopwatch(), info)
    found = read_info(path)
    assert json.loads(json.dumps(found)) == found
    assert found['confidence'] == 0.5
    assert found['shape'] == [1, 2]
    assert found['file'] == str(tmp_path)
    assert found['seconds'] >= 0
    assert found['peak_gb'] > 0
