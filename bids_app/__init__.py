# SPDX-License-Identifier: Apache-2.0
"""AnatNet: deep-learning segmentation of structural brain MRI as a BIDS App."""

from __future__ import annotations

__version__ = '0.1.0'
