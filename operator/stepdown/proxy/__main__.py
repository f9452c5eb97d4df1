"""`python -m stepdown.proxy`: one proxy process of its own. A pod of a RoutingProxy's Deployment runs it, and `stepdown run
--workers` starts several beside each other on one port.

Prints `listening on HOST:PORT` when it serves. SIGTERM drains; exit status 0 means that the ledger knows that it is closed,
3 that it does not yet (the next start with this state directory takes the same instance up again).
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

import uvloop

from stepdown.proxy.app import CLOSE_S, DRAIN_S, App, serve
from stepdown.proxy.identity import StateDirBusy
from stepdown.proxy.keys import EnvKeys, FirstOf, KeyDir, KeySource
from stepdown.proxy.server import ServerConfig
from stepdown.proxy.syncclient import Line, SyncClient, UnixLine
from stepdown.proxy.syncline import BadUrl, HttpsLine
from stepdown.proxy.wal import LogUnavailable

_TERMINATED = 128 + signal.SIGTERM


def main(arguments: list[str] | None = None) -> int:
    # The first process of a container has no default: a SIGTERM that comes before `serve` listens for it would be lost.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    host, _, port = options.listen.rpartition(":")
    config = ServerConfig(host=host.strip("[]") or "127.0.0.1", port=int(port), reuse_port=options.reuse_port)
    keys: KeySource = EnvKeys()
    if options.key_dir is not None:
        keys = FirstOf(KeyDir(options.key_dir), keys)
    try:
        line = _line(options)
    except BadUrl as error:
        parser.error(f"--sync-url: {error}")

    def started(app: App) -> None:
        print(f"listening on {config.host}:{app.port}", flush=True)

    try:
        closed = uvloop.run(
            serve(
                config,
                SyncClient(line),
                options.state_dir,
                options.fleet,
                keys,
                pod_uid=options.pod_uid,
                config_dir=options.config_dir,
                listen=SyncClient(_line(options)).wait if options.sync_url is not None else None,
                started=started,
                drain_s=options.drain_s,
                close_s=options.close_s,
                accept_s=options.accept_s,
            )
        )
    except (StateDirBusy, LogUnavailable, OSError) as error:
        print(f"stepdown proxy: {error}", file=sys.stderr)
        return 1
    return 0 if closed else 3


def _line(options: argparse.Namespace) -> Line:
    if options.sync_socket is not None:
        return UnixLine(options.sync_socket)
    return HttpsLine(options.sync_url, options.sync_ca, options.sync_token)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stepdown.proxy", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    keeper = parser.add_mutually_exclusive_group(required=True)
    keeper.add_argument("--sync-socket", type=Path, metavar="PATH", help="where the ledger's keeper listens, on this machine")
    keeper.add_argument("--sync-url", metavar="URL", help="where it listens in a cluster: https://HOST:PORT")
    parser.add_argument("--sync-ca", type=Path, default=Path("ca.crt"), metavar="FILE", help="with --sync-url: whom to trust")
    parser.add_argument("--sync-token", type=Path, default=Path("token"), metavar="FILE", help="with --sync-url: who we are")
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIR", help="of this process alone: log and lock")
    parser.add_argument("--fleet", required=True, metavar="NAMESPACE/NAME", help="the RoutingProxy that it belongs to")
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="the fleet's config as mounted, for a start without sync"
    )
    parser.add_argument("--key-dir", type=Path, metavar="DIR", help="the upstream's keys, a file a channel; re-read on change")
    parser.add_argument("--reuse-port", action="store_true", help="share the port with other processes")
    parser.add_argument("--pod-uid", default="", help="a log is only resumed by the pod that wrote it")
    parser.add_argument("--accept-s", type=float, default=0.0, metavar="S", help="go on accepting, unready, before draining")
    parser.add_argument("--drain-s", type=float, default=DRAIN_S, metavar="S", help="for requests in flight, at the end")
    parser.add_argument("--close-s", type=float, default=CLOSE_S, metavar="S", help="for the ledger to hear of the end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
