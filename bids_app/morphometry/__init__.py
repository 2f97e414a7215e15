# SPDX-License-Identifier: Apache-2.0
"""Numbers from segmentations: volumes of tissues and structures, quality measures."""
