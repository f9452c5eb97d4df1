"""`python -m stepdown.proxy`: one proxy process of its own, beside others on one port. `stepdown run --workers` starts them.

Prints `listening on HOST:PORT` when it serves. SIGTERM drains; exit status 0 means that the ledger knows that it is closed,
3 that it does not yet (the next start with this state directory takes the same instance up again).
"""

import argparse
import logging
import sys
from pathlib import Path

import uvloop

from stepdown.proxy.app import CLOSE_S, DRAIN_S, App, serve
from stepdown.proxy.identity import StateDirBusy
from stepdown.proxy.keys import EnvKeys, FirstOf, KeyDir, KeySource
from stepdown.proxy.server import ServerConfig
from stepdown.proxy.syncclient import SyncClient
from stepdown.proxy.wal import LogUnavailable


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    host, _, port = options.listen.rpartition(":")
    config = ServerConfig(host=host.strip("[]") or "127.0.0.1", port=int(port), reuse_port=options.reuse_port)
    keys: KeySource = EnvKeys()
    if options.key_dir is not None:
        keys = FirstOf(KeyDir(options.key_dir), keys)

    def started(app: App) -> None:
        print(f"listening on {config.host}:{app.port}", flush=True)

    try:
        closed = uvloop.run(
            serve(
                config,
                SyncClient(options.sync_socket),
                options.state_dir,
                options.fleet,
                keys,
                pod_uid=options.pod_uid,
                started=started,
                drain_s=options.drain_s,
                close_s=options.close_s,
            )
        )
    except (StateDirBusy, LogUnavailable, OSError) as error:
        print(f"stepdown proxy: {error}", file=sys.stderr)
        return 1
    return 0 if closed else 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stepdown.proxy", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--sync-socket", type=Path, required=True, metavar="PATH", help="where the ledger's keeper listens")
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIR", help="of this process alone: log and lock")
    parser.add_argument("--fleet", required=True, metavar="NAMESPACE/NAME", help="the RoutingProxy that it belongs to")
    parser.add_argument("--key-dir", type=Path, metavar="DIR", help="the upstream's keys, a file a channel; re-read on change")
    parser.add_argument("--reuse-port", action="store_true", help="share the port with other processes")
    parser.add_argument("--pod-uid", default="", help="a log is only resumed by the pod that wrote it")
    parser.add_argument("--drain-s", type=float, default=DRAIN_S, metavar="S", help="for requests in flight, at the end")
    parser.add_argument("--close-s", type=float, default=CLOSE_S, metavar="S", help="for the ledger to hear of the end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
