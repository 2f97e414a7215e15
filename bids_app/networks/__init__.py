# SPDX-License-Identifier: Apache-2.0
"""Networks: ``nn.Module`` classes only, one family per file, and the registry that builds them."""

from __future__ import annotations

from typing import Any

from torch import nn

from bids_app.networks.context_unet import ContextUNet3D
from bids_app.networks.deepanat import DeepAnatDiscriminator, DeepAnatUNet
from bids_app.networks.deepnat import DeepNAT
from bids_app.networks.densenet import (
    DenseNet3D,
    EarlyFusionDenseNet3D,
    LateFusionDenseNet3D,
)
from bids_app.networks.hyperdensenet import HyperDenseNet3D
from bids_app.networks.pif import ConvClassifier3D, LinearClassifier3D
from bids_app.networks.symnet import SymNet
from bids_app.networks.unet import ResidualUNet3D
from bids_app.networks.vnet import VNet, VNetLight

__all__ = [
    'NETWORKS',
    'ContextUNet3D',
    'ConvClassifier3D',
    'DeepAnatDiscriminator',
    'DeepAnatUNet',
    'DeepNAT',
    'DenseNet3D',
    'EarlyFusionDenseNet3D',
    'HyperDenseNet3D',
    'LateFusionDenseNet3D',
    'LinearClassifier3D',
    'ResidualUNet3D',
    'SymNet',
    'VNet',
    'VNetLight',
    'build_network',
]

NETWORKS: dict[str, type[nn.Module]] = {
    'ContextUNet3D': ContextUNet3D,
    'ConvClassifier3D': ConvClassifier3D,
    'DeepAnatDiscriminator': DeepAnatDiscriminator,
    'DeepAnatUNet': DeepAnatUNet,
    'DeepNAT': DeepNAT,
    'DenseNet3D': DenseNet3D,
    'EarlyFusionDenseNet3D': EarlyFusionDenseNet3D,
    'HyperDenseNet3D': HyperDenseNet3D,
    'LateFusionDenseNet3D': LateFusionDenseNet3D,
    'LinearClassifier3D': LinearClassifier3D,
    'ResidualUNet3D': ResidualUNet3D,
    'SymNet': SymNet,
    'VNet': VNet,
    'VNetLight': VNetLight,
}


def build_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a network by the name and the arguments that a model card states.

    Parameters
    ----------
    name : str
        A key of :data:`NETWORKS`.
    arguments : dict
        Keyword arguments of that class.

    Returns
    -------
    torch.nn.Module
        The network with random weights, in training mode.

    Raises
    ------
    KeyError
        If no network has this name.
    """
    try:
        network = NETWORKS[name]
    except KeyError:
        raise KeyError(
            f'unknown network {name!r}: known are {", ".join(sorted(NETWORKS))}'
        ) from None
    return network(**arguments)
