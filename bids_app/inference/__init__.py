# SPDX-License-Identifier: Apache-2.0
"""From weights to predictions: model folders, device choice, tiled and whole-volume inference."""
