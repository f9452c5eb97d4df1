"""`python -m tests.upstream`: the simulator as a process. Prints its URL on the first line, serves until SIGTERM."""

import argparse
import asyncio
import signal

import msgspec
import uvloop

from tests.upstream.answers import Model
from tests.upstream.bill import Price, price_of
from tests.upstream.faults import Fault
from tests.upstream.simulator import PRO_KEY, STANDARD_KEY, Simulator


def main() -> None:
    uvloop.run(_serve(_arguments()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine that pods of its own cluster reach")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", choices=("typical", "worst"), default="typical", help="worst: a token for every byte")
    parser.add_argument("--output", nargs=2, type=int, default=(20, 400), metavar=("MIN", "MAX"), help="tokens of an answer")
    parser.add_argument("--chunks", type=int, default=20, help="content chunks of a stream, at most")
    parser.add_argument(
        "--cached", type=int, default=33, metavar="PERCENT", help="requests that find a part of the prompt cached"
    )
    parser.add_argument(
        "--reasoning", type=int, default=0, metavar="PERCENT", help="the part of a completion that is reasoning"
    )
    parser.add_argument("--latency", type=float, nargs="*", default=(), metavar="S", help="before the first byte, in turn")
    parser.add_argument("--chunk-delay", type=float, default=0.0, metavar="S", help="before each chunk of a stream")
    parser.add_argument("--bill-on-disconnect", choices=("full", "sent", "none"), default="full")
    parser.add_argument("--key", action="append", help=f"accepted for the standard channel (default {STANDARD_KEY})")
    parser.add_argument("--pro-key", action="append", help=f"accepted for all models (default {PRO_KEY})")
    parser.add_argument("--price", action="append", default=[], metavar="ID=IN,OUT[,CACHED]", help="USD per million tokens")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="JSON", help='such as {"kind": "status", "status": 429}'
    )
    parser.add_argument("--keep", type=int, help="how many requests to remember (default: all; 0: totals only)")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    simulator = Simulator(
        host=arguments.host,
        port=arguments.port,
        model=Model(
            rule=arguments.tokens,
            output_tokens=tuple(arguments.output),
            chunks=arguments.chunks,
            cached_of_100=arguments.cached,
            reasoning_percent=arguments.reasoning,
            seed=arguments.seed,
        ),
        latencies_s=arguments.latency,
        per_chunk_s=arguments.chunk_delay,
        bill_on_disconnect=arguments.bill_on_disconnect,
        standard_keys=arguments.key or (STANDARD_KEY,),
        pro_keys=arguments.pro_key or (PRO_KEY,),
        prices=dict(_price(text) for text in arguments.price),
        keep=arguments.keep,
    )
    simulator.order(msgspec.json.decode(text, type=Fault) for text in arguments.fault)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with simulator:
        print(f"listening on {simulator.url}", flush=True)
        await stop.wait()


def _price(text: str) -> tuple[str, Price | None]:
    name, _, usd = text.rpartition("=")
    input_usd, output_usd, *cached = usd.split(",")
    return name, price_of(input_usd, output_usd, *cached)


main()
