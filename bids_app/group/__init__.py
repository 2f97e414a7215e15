# SPDX-License-Identifier: Apache-2.0
"""The group level: from finished participants to a study."""
