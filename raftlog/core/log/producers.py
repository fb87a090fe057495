"""What a partition remembers of each idempotent producer: its epoch and last batches, and its open transaction.

Source: KIP-98, KIP-360, KIP-890.
"""

from __future__ import annotations


class ProducerStates:
    """The producers of one partition by id."""
