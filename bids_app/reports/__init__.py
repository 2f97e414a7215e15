# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML report per session.

:mod:`~bids_app.reports.session` holds what a report needs to know and writes it; the other
modules draw the figures, read the tables and word the methods section.
"""
