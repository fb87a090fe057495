"""The matrix client x feature against three real nodes, run and shown as a table. What it holds is in tests/conformance/matrix."""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from local_cluster import LocalCluster, running_cluster

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from matrix import table  # noqa: E402
from matrix.aiokafka_client import Aiokafka  # noqa: E402
from matrix.bench import CLUSTER_SETTINGS, Bench  # noqa: E402
from matrix.client import Client  # noqa: E402
from matrix.confluent import Confluent  # noqa: E402
from matrix.features import FEATURES  # noqa: E402
from matrix.java_tools import JAVA_TOOLS  # noqa: E402
from matrix.kafka_python_client import KafkaPython  # noqa: E402
from matrix.kcat import Kcat  # noqa: E402
from matrix.outcome import FAILS, WORKS, Cell, attempt  # noqa: E402
from matrix.programs import KAFKA, GoProgram, Java, KafkaJs, Skipped  # noqa: E402

PAGE: Final = ROOT / "tests" / "conformance" / "CLIENTS.md"
README: Final = ROOT / "README.md"
MARKER: Final = "clients"
TOOLS: Final = "Kafka's own command-line tools"
KAFKA_STREAMS: Final = "kafka-streams"
STREAMS: Final = {"quix": "Quix Streams 3.28.1", "faust": "Faust 0.15.3", KAFKA_STREAMS: f"Kafka Streams {KAFKA}"}


def all_clients() -> list[Client]:
    return [Confluent(), Aiokafka(), KafkaPython(), Kcat(), Java(), GoProgram("franz-go", "franz"), GoProgram("sarama", "sarama"), KafkaJs()]


def main() -> int:
    asked = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # So that the nodes are stopped, too.
    chosen = [client for client in all_clients() if (client.name in asked.clients if asked.clients else asked.all or not client.is_fetched)]
    results = table.Results(f"Made by `scripts/conformance`, client after client, with three nodes on one machine ({system()}).")
    with tempfile.TemporaryDirectory(prefix="raftlog-clients-") as directory:
        ready = [client for client in chosen if is_prepared(client, Path(directory), results)]
        with running_cluster(3, settings=CLUSTER_SETTINGS, metrics=True) as cluster:
            for client in ready:
                run(client, cluster, asked.only, results)
        if asked.all and not asked.only:
            run_streams(next((client for client in ready if isinstance(client, Java)), None), results)
    groups = {group: list(checks) for group, checks in FEATURES.items()}
    if not asked.only:
        page, short = table.in_full(results, groups), table.in_short(results, groups)
        print(f"\n{page}\n{short}")
        if asked.write:
            PAGE.write_text(page, encoding="utf-8")
            README.write_text(table.between(README.read_text(encoding="utf-8"), MARKER, short), encoding="utf-8")
    return verdict(results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the clients too that Maven, Go and npm fetch")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name} and {README.name}")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="only features and tools of such names; writes nothing")
    parser.add_argument("clients", nargs="*", help="only these")
    asked = parser.parse_args()
    known = [client.name for client in all_clients()]
    if unknown := set(asked.clients) - set(known):
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return asked


def is_prepared(client: Client, directory: Path, results: table.Results) -> bool:
    """Fetch and build it; whether it is there."""
    print(f"{client.name}: preparing", flush=True)
    try:
        client.prepare(directory)
    except Skipped as reason:
        results.skipped.append(f"{client.name}: {reason}")
        print(f"SKIPPED {results.skipped[-1]}", flush=True)
        return False
    return True


def run(client: Client, cluster: LocalCluster, only: re.Pattern[str] | None, results: table.Results) -> None:
    """All features of one client and, with the Java one, Kafka's tools."""
    client.start(cluster.bootstrap_servers)
    bench = Bench(client, cluster)
    column = results.columns.setdefault(f"{client.name} {client.version}", {})
    for group, checks in FEATURES.items():
        for name, check in checks.items():
            if only is None or only.search(f"{group}: {name}"):
                column[group, name] = reported(f"{client.name:15} {group}: {name}", partial(check, bench))
    client.stop()
    if isinstance(client, Java):
        tools = results.programs.setdefault(TOOLS, {})
        for name, tool in JAVA_TOOLS.items():
            if only is None or only.search(name):
                tools[name] = reported(name, partial(tool, bench))


def run_streams(java: Java | None, results: table.Results) -> None:
    """The stream processors' tests, each with a cluster of its own; that of Kafka Streams with Java's jars."""
    rows: dict[str, Cell] = {}
    for program, name in STREAMS.items():
        if program == KAFKA_STREAMS and java is None:
            results.skipped.append(f"{name}: it needs the Java client")
            continue
        argv = [sys.executable, "-m", "pytest", "-q", "-rs", str(ROOT / "tests" / "conformance" / "test_streams.py"), "-k", program]
        settings = {**os.environ, "STREAMS_CLASSPATH": java.class_path} if java else None
        done = subprocess.run(argv, env=settings, capture_output=True, text=True, check=False)
        if "skipped" in done.stdout:
            results.skipped.append(f"{name}: it could not be installed")
            continue
        why = next((line for line in done.stdout.splitlines() if line.startswith("E ")), "") if done.returncode else ""
        rows[f"{name}: state restored from its changelog, windows, a join"] = Cell(FAILS if done.returncode else WORKS, why)
        print(f"{name:60} {'FAILS' if done.returncode else 'works'}", flush=True)
    results.programs["Stream processors on the flights"] = rows


def reported(what: str, check: Callable[[], None]) -> Cell:
    cell = attempt(check)
    print(f"{what:60} {cell.shown:12} {cell.took_s:5.1f} s  {cell.why}", flush=True)
    return cell


def verdict(results: table.Results) -> int:
    shown = [cell.shown for _, cell in results.cells()]
    print(f"conformance: {shown.count(WORKS)} passed, {shown.count(FAILS)} failed, {len(results.skipped)} skipped")
    return 1 if FAILS in shown or WORKS not in shown else 0


def system() -> str:
    return f"{platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
