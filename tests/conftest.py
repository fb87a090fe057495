"""For all tests."""

from __future__ import annotations

import signal

# A shell ignores Ctrl-C for what it starts in the background, and processes that the tests start inherit that: they could not
# be interrupted, and a test that does so would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
