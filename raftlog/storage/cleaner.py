"""The log cleaner: compacts the logs whose cleanup.policy has `compact`, the dirtiest first, one at a time.

Each replica cleans for itself, so replicas agree record by record, but not byte for byte. How far each log is clean is
kept in `cleaner-offset-checkpoint`. Source: https://kafka.apache.org/documentation/#compaction, KIP-354 (maximum lag).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from raftlog.config import Settings
from raftlog.environment import Environment
from raftlog.errors import KafkaStorageError, StorageError
from raftlog.ids import Offset, TopicPartition
from raftlog.storage.cleaning import Abandoned, Dirt, LogCleaning, Uncleanable, assess
from raftlog.storage.log import Log
from raftlog.storage.manager import LogManager

LOGS_PER_SLICE: Final = 32  # Looked at between two turns of the event loop.
BACKOFF_MS_MIN: Final = 10  # Also where log.cleaner.backoff.ms is 0: the cleaner must not spin.

logger = logging.getLogger(__name__)


class LogCleaner:
    """Cleans `logs` while it runs. `stable_offset` says up to where a log's records may be compacted, None: not at all."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        logs: LogManager,
        *,
        stable_offset: Callable[[TopicPartition], Offset | None],
        on_storage_error: Callable[[Exception], object],
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._logs = logs
        self._stable_offset = stable_offset
        self._on_storage_error = on_storage_error
        self._uncleanable: set[Log] = set()
        self._task: asyncio.Task[None] | None = None
        self._spent_s = 0.0  # When, in the loop's time, what was read and written so far is within the rate.

    def start(self) -> None:
        if self._settings.log_cleaner_enable:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def reconfigure(self, settings: Settings) -> None:
        """Takes effect from the next pause, round or chunk on."""
        self._settings = settings

    def abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop. What was begun is completed or thrown away at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            cleaned_one = False
            try:
                cleaned_one = await self.clean_dirtiest()
            except (StorageError, KafkaStorageError) as error:
                self._on_storage_error(error)
                return
            except Exception:
                logger.exception("looking for a log to compact failed")
            if not cleaned_one:
                await asyncio.sleep(max(self._settings.log_cleaner_backoff_ms, BACKOFF_MS_MIN) / 1000)

    async def clean_dirtiest(self) -> bool:
        """One round of the log that needs it most; False when none does. Raises StorageError, KafkaStorageError."""
        found = await self._find_dirtiest()
        if found is None:
            return False
        name, log, dirt = found
        try:
            await self._clean(name, log, dirt)
        except Abandoned:
            logger.debug("%s: it was cut while it was compacted", log.directory)
            return False
        except Uncleanable as error:
            self._leave(log, str(error))
        except (StorageError, KafkaStorageError):
            if log is not self._logs.get(name):  # It was deleted meanwhile.
                return False
            raise
        except Exception as error:
            self._leave(log, f"{type(error).__name__}: {error}")
            logger.debug("the traceback of it", exc_info=error)
        return True

    def _leave(self, log: Log, problem: str) -> None:
        self._uncleanable.add(log)
        logger.error("%s is not compacted until the next start: %s", log.directory, problem)

    async def _find_dirtiest(self) -> tuple[TopicPartition, Log, Dirt] | None:
        self._uncleanable &= set(self._logs.logs.values())
        best: tuple[TopicPartition, Log, Dirt] | None = None
        for count, (name, log) in enumerate(list(self._logs.logs.items())):
            if count % LOGS_PER_SLICE == 0:
                await asyncio.sleep(0)
            if not log.config.compacts or log in self._uncleanable or self._logs.get(name) is not log:
                continue
            try:
                dirt = await self._assess(name, log)
            except (StorageError, KafkaStorageError):
                if log is not self._logs.get(name):
                    continue
                raise
            if dirt is not None and (best is None or dirt.ratio > best[2].ratio):
                best = name, log, dirt
        return best

    async def _assess(self, name: TopicPartition, log: Log) -> Dirt | None:
        """What there is to do; None where it is too little."""
        stable_offset = self._stable_offset(name)
        if stable_offset is None:
            return None
        unstable = log.first_unstable_offset
        dirt = await assess(
            log,
            cleaned_offset=self._logs.cleaned_offsets.get(name, log.log_start_offset),
            stable_offset=stable_offset if unstable is None else min(stable_offset, unstable),
            now_ms=self._environment.clock.wall_ms(),
        )
        is_due = dirt.dirty_bytes > 0 and (dirt.is_overdue or dirt.ratio > log.config.min_cleanable_dirty_ratio)
        return dirt if is_due else None

    async def _clean(self, name: TopicPartition, log: Log, dirt: Dirt) -> None:
        started_ms = self._environment.clock.monotonic_ms()
        cleaning = LogCleaning(
            log,
            dirt,
            files=self._environment.files,
            clock=self._environment.clock,
            pace=self,
            map_bytes_max=self._settings.log_cleaner_dedupe_buffer_size,
        )
        clean_offset = await cleaning.run()
        if clean_offset == dirt.first_dirty_offset:
            self._leave(log, f"what comes at offset {clean_offset} belongs to a transaction, which can't be compacted")
            return
        await self._logs.checkpoint_cleaned(name, clean_offset)
        logger.info(
            "%s: compacted offsets %d to %d, %d bytes became %d, in %d ms",
            log.directory,
            dirt.first_dirty_offset,
            clean_offset,
            cleaning.bytes_before,
            cleaning.bytes_after,
            self._environment.clock.monotonic_ms() - started_ms,
        )

    async def spend(self, size_bytes: int) -> None:
        """Wait until the bytes read and written are within log.cleaner.io.max.bytes.per.second."""
        now_s = asyncio.get_running_loop().time()
        self._spent_s = max(self._spent_s, now_s) + size_bytes / self._settings.log_cleaner_io_max_bytes_per_second
        if self._spent_s > now_s:
            await asyncio.sleep(self._spent_s - now_s)
