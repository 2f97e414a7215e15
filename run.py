#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Entry point of the BIDS App: ``run.py bids_dir output_dir participant``."""

import sys

from bids_app.cli import main

if __name__ == '__main__':
    sys.exit(main())
