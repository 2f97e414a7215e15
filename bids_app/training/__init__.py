# SPDX-License-Identifier: Apache-2.0
"""Training: recipes, image synthesis from label maps, losses, the loop and the evaluation."""
