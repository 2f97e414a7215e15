# SPDX-License-Identifier: Apache-2.0
"""Where BIDS comes in and goes out: finding scans, naming derivatives, writing them safely."""
