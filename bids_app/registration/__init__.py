# SPDX-License-Identifier: Apache-2.0
"""Registration to a template: affine, then diffeomorphic by velocity fields."""
