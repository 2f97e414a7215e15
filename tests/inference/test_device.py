# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bids_app.errors import UsageError
from bids_app.inference import device
from bids_app.inference.device import resolve_device, resolve_precision


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(device, 'probe_cuda', lambda: (['H200', 'H200'], ''))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device, 'probe_cuda', lambda: ([], 'no CUDA GPU is visible'))


def test_auto_says_what_it_chose_and_why(no_gpu):
    choice = resolve_device('auto')
    assert choice.device == 'cpu'
    assert choice.reason == 'cpu (auto: no CUDA GPU is visible)'


def test_auto_takes_the_first_gpu(two_gpus):
    assert resolve_device('auto').device == 'cuda:0'


def test_cuda_fails_hard_without_a_gpu(no_gpu):
    with pytest.raises(UsageError, match='no CUDA GPU'):
        resolve_device('cuda')


def test_device_beyond_the_last_is_an_error(two_gpus):
    assert resolve_device('cuda:1').device == 'cuda:1'
    with pytest.raises(UsageError, match='only 2 found'):
        resolve_device('cuda:2')


def test_several_devices(two_gpus):
    assert resolve_device('auto').devices == ('cuda:0',)
    choice = resolve_device('cuda:1,cuda:0')
    assert (choice.device, choice.devices) == ('cuda:0', ('cuda:0', 'cuda:1'))
    assert choice.reason == 'cuda:0 (asked for: H200), cuda:1 (asked for: H200)'
    with pytest.raises(UsageError, match='only 2 found'):
        resolve_device('cuda:0,cuda:2')


def test_worker_of_another_gpu_says_so(monkeypatch):
    assert device.device_here('cuda:0') == 'cuda:0'
    monkeypatch.setenv(device.DEVICE_VARIABLE, 'cuda:1')
    assert device.device_here('cuda:0') == 'cuda:1'
    assert device.device_here('cpu') == 'cpu'


def test_unknown_device_lists_the_choices():
    with pytest.raises(UsageError, match='auto'):
        resolve_device('gpu')


def test_probe_answers_on_this_machine():
    names, reason = device.probe_cuda()
    assert names or reason


def test_precision():
    assert resolve_precision('float32', 'cpu') == 'float32'
    assert resolve_precision('auto', 'cpu') in ('float32', 'bfloat16')
    with pytest.raises(UsageError, match='float32'):
        resolve_precision('float16', 'cpu')
