# SPDX-License-Identifier: Apache-2.0
"""Builders of Nipype workflows, and the run of the participant level."""

from __future__ import annotations
