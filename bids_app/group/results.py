# SPDX-License-Identifier: Apache-2.0
"""What an analysis of a study hands over to the page and the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class AnalysisResult:
    """The outcome of one analysis, such as a linear model or a classification.

    Attributes
    ----------
    title : str
        Heading of its section.
    summary : list of str
        What was done and found, in plain sentences.
    methods : str
        Paragraph for the methods section: Markdown with citations such as ``[@n4]``.
    figures : list of Path
        SVG or PNG files, embedded in the page.
    tables : list of (str, Path)
        Title and TSV file; the page shows the first rows.
    notes : list of str
        Warnings.
    """

    title: str
    summary: list[str] = field(default_factory=list)
    methods: str = ''
    figures: list[Path] = field(default_factory=list)
    tables: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
