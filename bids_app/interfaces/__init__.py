# SPDX-License-Identifier: Apache-2.0
"""Thin Nipype interfaces: traits in, one call into the science rooms, files out."""

from __future__ import annotations
