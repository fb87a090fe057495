"""`python -m raftlog_cli`: the same as `raftlog`."""

from .main import main

if __name__ == "__main__":
    main()
