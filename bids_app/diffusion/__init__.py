# SPDX-License-Identifier: Apache-2.0
"""Diffusion MRI: gradients, the tensor, its maps, and the channels of the T1w synthesis."""
