# SPDX-License-Identifier: Apache-2.0
"""``python -m bids_app`` is the command ``anatnet``."""

import sys

from bids_app.cli import main

if __name__ == '__main__':
    sys.exit(main())
