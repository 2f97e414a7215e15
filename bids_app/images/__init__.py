# SPDX-License-Identifier: Apache-2.0
"""Voxel grids: reading scans safely, conforming, resampling, masks and bias fields."""
