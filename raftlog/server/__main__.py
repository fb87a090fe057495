"""`python -m raftlog.server -c FILE [--set NAME=VALUE]…`: a node without the command line's own start-up."""

from __future__ import annotations

import argparse
import sys

from raftlog.server import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m raftlog.server", description="Run one node until SIGTERM or SIGINT.")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the node's .properties file")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting; repeatable")
    parser.add_argument("--cluster-id", metavar="ID", help="prepare an empty data directory for this cluster")
    arguments = parser.parse_args()
    overrides = dict(pair.split("=", 1) for pair in arguments.set if "=" in pair)
    if len(overrides) != len(arguments.set):
        parser.error("--set takes NAME=VALUE")
    return run.main(arguments.config, overrides=overrides, cluster_id=arguments.cluster_id)


if __name__ == "__main__":
    sys.exit(main())
