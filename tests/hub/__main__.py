"""Run the test hub by hand: `python -m tests.hub --xet`, then work with hf in another shell until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from tests.hub.server import TestHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description="A hub on the loopback interface.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--root", type=Path, help="where contents are kept; default: a temporary folder")
    parser.add_argument("--cdn", action="store_true", help="send LFS files through a second server")
    parser.add_argument("--xet", action="store_true", help="offer xet")
    parser.add_argument("--user", default="alice", help="a user with a token that may write")
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with TestHub(root=options.root, port=options.port, cdn=options.cdn, xet=options.xet) as hub:
        token = hub.add_user(options.user)
        print(f"export HF_ENDPOINT={hub.url}")
        print(f"export HF_TOKEN={token}")
        print(f"export HF_HUB_DISABLE_XET={0 if options.xet else 1}")
        print("export HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_UPDATE_CHECK=1", flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
