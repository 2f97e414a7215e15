# SPDX-License-Identifier: Apache-2.0
"""Clusters: splitting the participants of a study, and job scripts for Slurm."""
