# SPDX-License-Identifier: Apache-2.0
"""How workflows are run: Nipype's settings, the plugin and its resources."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.bids.files import read_text
from bids_app.config import RunConfig
from bids_app.environment import THREAD_VARIABLES, limit_threads, memory_bytes
from bids_app.errors import UsageError

if TYPE_CHECKING:
    from bids_app.workflows.throughput import Usage

LOGGER = logging.getLogger('anatnet.workflow')

POLL_SECONDS = 0.05


def limit_workers(config: RunConfig) -> dict[str, str]:
    """Set how many threads one worker may use, here and, by what is returned, in the workers."""
    limit_threads(config.omp_nthreads)
    variables = {name: os.environ[name] for name in THREAD_VARIABLES}
    variables.update({'NO_ET': '1', 'NIPYPE_NO_ET': '1'})
    os.environ.update(variables)
    return variables


def configure_nipype(config: RunConfig, log_handler: logging.Handler | None = None) -> None:
    """Make Nipype quiet, quick to notice what is finished, and its crash files text."""
    from nipype import config as nipype_config

    from bids_app.workflows.workers import quiet_nipype

    nipype_config.update_config({
        'execution': {
            'crashfile_format': 'txt',
            'create_report': 'false',
            'check_version': 'false',
            'hash_method': 'timestamp',
            'job_finished_timeout': '15',
            'poll_sleep_duration': str(POLL_SECONDS),
            'remove_unnecessary_outputs': 'false',
            'stop_on_first_crash': str(config.stop_on_first_crash).lower(),
        }
    })  # fmt: skip
    level = logging.DEBUG if 'nipype' in config.debug or config.verbose > 1 else logging.WARNING
    quiet_nipype(log_handler, level)


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Read the YAML file of ``--use-plugin``.

    Raises
    ------
    UsageError
        If it cannot be read or does not name a plugin of Nipype.
    """
    import yaml

    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f'cannot read the plugin file {path}: {reason}') from None
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise UsageError(f'the plugin file {path} is nested too deeply') from None
    except yaml.YAMLError as error:
        reason = ' '.join(str(error).split())
        raise UsageError(f'the plugin file {path} is not valid YAML: {reason}') from None
    arguments = content.get('plugin_args') if isinstance(content, dict) else None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get('plugin'), str)
        or not (arguments is None or isinstance(arguments, dict))
    ):
        raise UsageError(
            f'the plugin file {path} must hold "plugin: NAME" and, optionally, "plugin_args:" '
            'with options below it'
        )
    name = content['plugin'].removesuffix('Plugin')
    from nipype.pipeline import plugins

    if not hasattr(plugins, f'{name}Plugin'):
        known = sorted(n.removesuffix('Plugin') for n in dir(plugins) if n.endswith('Plugin'))
        raise UsageError(
            f'the plugin file {path} names "{name}", which Nipype does not have; '
            f'use one of {", ".join(known)}'
        )
    return name, dict(arguments or {})


def memory_limit_gb(config: RunConfig) -> float:
    """Return the memory to share out: what the user says, or 90 % of the machine or container."""
    if config.mem_gb is not None:
        return config.mem_gb
    return 0.9 * memory_bytes() / 1e9


def network_lanes(config: RunConfig, devices: Sequence[str]) -> dict[str, int]:
    """Return how many workers with loaded networks each device has.

    Parameters
    ----------
    config : RunConfig
        Processors, threads of a step, and ``gpu_slots`` of every GPU.
    devices : sequence of str
        The CPU, or some GPUs.

    Examples
    --------
    >>> config = RunConfig(Path('in'), Path('out'), nprocs=16, omp_nthreads=4, gpu_slots=2)
    >>> network_lanes(config, ['cpu']), network_lanes(config, ['cuda:0', 'cuda:1'])
    ({'cpu': 4}, {'cuda:0': 2, 'cuda:1': 2})
    """
    if list(devices) == ['cpu']:
        return {'cpu': max(1, config.nprocs // config.omp_nthreads)}
    return dict.fromkeys(devices, config.gpu_slots)


def _submits_jobs(plugin: str) -> bool:
    """Return whether a plugin of Nipype writes scripts and gives them to a cluster."""
    from nipype.pipeline import plugins
    from nipype.pipeline.plugins.base import SGELikeBatchManagerBase

    return issubclass(getattr(plugins, f'{plugin}Plugin'), SGELikeBatchManagerBase)


class Executor:
    """Run workflows one after the other with the plugin that the user chose.

    Parameters
    ----------
    config : RunConfig
        Processors, memory, GPU slots and plugin file.
    status : callable
        Nipype's status callback.
    on_crash : callable
        Called with a node and the path of its crash file.
    rank : callable
        Gives a sortable priority to a node, low first.
    environment : dict
        Variables to set in the workers.
    devices : sequence of str
        Where networks run, see :func:`bids_app.inference.device.resolve_device`.

    Raises
    ------
    UsageError
        If several devices are asked for and the plugin cannot spread networks over them.

    Notes
    -----
    Use it as a context manager. That nodes failed is no exception: it shows in their crash files.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        status: Callable[[Any, str], None],
        on_crash: Callable[[Any, Path], None],
        rank: Callable[[Any], Any],
        environment: dict[str, str],
        devices: Sequence[str] = ('cpu',),
    ) -> None:
        from bids_app.workflows.plugin import SteadyMultiProcPlugin

        name, arguments = 'MultiProc', {}
        if config.use_plugin is not None:
            name, arguments = read_plugin_file(config.use_plugin)
        self.name = name
        self._steady: SteadyMultiProcPlugin | None = None
        self._arguments = {'status_callback': status, **arguments}
        if _submits_jobs(name) and re.search(r'\s', str(config.work_dir)):
            raise UsageError(
                f'the plugin {name} cannot work in "{config.work_dir}", which holds a space; '
                'choose another folder with --work-dir'
            )
        if name != 'MultiProc' and len(devices) > 1:
            raise UsageError(
                f'the plugin {name} cannot spread networks over {", ".join(devices)}; leave out '
                '--use-plugin, or name one device'
            )
        if name == 'MultiProc':
            lanes = network_lanes(config, devices)
            self._steady = SteadyMultiProcPlugin({
                'n_procs': config.nprocs,
                'memory_gb': memory_limit_gb(config),
                'n_gpu_procs': config.gpu_slots * len(devices),
                'lanes': lanes,
                'raise_insufficient': False,
                'mp_context': 'forkserver',
                'on_crash': on_crash,
                'rank': rank,
                'environment': environment,
                'preload': ['nipype.pipeline.engine', 'nibabel', 'bids_app.interfaces.anat'],
                **self._arguments,
            })  # fmt: skip

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if self._steady is not None:
            self._steady.close(kill=kind is not None)

    @property
    def usage(self) -> Usage | None:
        """When the workers were busy; other plugins do not say."""
        return None if self._steady is None else self._steady.usage

    def run(self, workflow: Any) -> str | None:
        """Run a workflow to its end, or to the first crash if that is asked for.

        Returns
        -------
        str or None
            What Nipype raised, in one line. That nodes failed is raised at the end, too; their
            crash files say more.
        """
        try:
            if self._steady is not None:
                workflow.run(plugin=self._steady)
            else:
                workflow.run(plugin=self.name, plugin_args=dict(self._arguments))
        except Exception as error:
            text = ' '.join(f'{type(error).__name__}: {error}'.split())
            LOGGER.debug('Nipype: %s', text)
            return text[:300]
        return None
