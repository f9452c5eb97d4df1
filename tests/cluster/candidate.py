"""One candidate for a Lease as a process of its own, for tests that kill and pause it: it says what it believes, all the time.

    python -m tests.cluster.candidate KUBECONFIG NAMESPACE IDENTITY

A line is `seconds leading`, by the machine's clock that all its processes share.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

from stepdown.cluster.client import Cluster
from stepdown.cluster.leader import Elector
from stepdown.sync.clock import now_s

LEASE_S, RENEW_S, RETRY_S = 3.0, 2.0, 0.3


async def main(kubeconfig: Path, namespace: str, identity: str) -> None:
    async with Cluster.connect(kubeconfig) as cluster:
        elector = Elector(
            cluster, namespace, "stepdown", identity, wall=now_s, lease_s=LEASE_S, renew_s=RENEW_S, retry_s=RETRY_S
        )
        running = asyncio.create_task(elector.run(lambda: None, lambda: None))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        while not stop.is_set():
            before_s = time.monotonic()
            leading = elector.leading
            # As a grant would: what was believed counts until the moment it is acted on.
            print(f"{before_s:.4f} {int(leading)}", flush=True)
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
