"""The rooms product by the stock Python client, threaded and asyncio, under the default settings.

Every handler takes exactly the arguments of its event: one more (an offset, say) is a TypeError, which fails
the run. Arguments: the client addresses of two nodes.
"""

import asyncio
import sys
import threading

import socketio

TRANSPORTS = {"polling": ["polling"], "websocket": ["websocket"], "upgrade": None}
PUBLISHES = [("r", "say", n) for n in range(20)] + [
    ("r", "pair", "two", {"of": ["them"]}),
    ("r", "nothing"),
    ("r", "bytes", b"\x00\x01\xff"),
]
PATIENCE_SECONDS = 20


class Heard:
    """What a member has got, and what has gone wrong meanwhile. `whole` is set when it is all there, or cannot be any more."""

    def __init__(self, whole):
        self.events, self.closed, self.failures, self.whole = [], [], [], whole

    def take(self, event):
        self.events.append(event)
        if len(self.events) == len(PUBLISHES):
            self.whole.set()

    def fail(self, why):
        self.failures.append(why)
        self.whole.set()

    def handlers(self):
        return {
            "say": lambda n: self.take(("say", n)),
            "pair": lambda a, b: self.take(("pair", a, b)),
            "nothing": lambda: self.take(("nothing",)),
            "bytes": lambda data: self.take(("bytes", data)),
        }

    def check(self):
        """The client starts each handler by itself: in which order they run is not the mesh's to promise."""
        assert self.failures == [], self.failures
        assert self.closed == [], self.closed
        assert sorted(map(repr, self.events)) == sorted(repr(publish[1:]) for publish in PUBLISHES), self.events


def url(node, uid):
    return f"http://{node}?product=rooms&uid={uid}"


def check(answer, what):
    assert answer.get("ok") is True, f"{what} was answered {answer}"


def threaded(nodes, transports):
    heard = Heard(threading.Event())
    threading.excepthook = lambda hook: heard.fail(repr(hook.exc_value))
    alice, bob = (socketio.Client(reconnection=False) for _ in range(2))
    for event, handler in heard.handlers().items():
        bob.on(event, handler)
    for client, node, uid in ((alice, nodes[0], "alice"), (bob, nodes[1], "bob")):
        client.on("disconnect", heard.closed.append)
        client.connect(url(node, uid), transports=transports)
        check(client.call("join", "r", timeout=PATIENCE_SECONDS), "join")
    for publish in PUBLISHES:
        check(alice.call("publish", publish, timeout=PATIENCE_SECONDS), publish)
    heard.whole.wait(PATIENCE_SECONDS)
    heard.check()
    for client in (alice, bob):
        client.disconnect()


async def by_asyncio(nodes, transports):
    heard = Heard(asyncio.Event())
    asyncio.get_running_loop().set_exception_handler(lambda _, what: heard.fail(repr(what)))
    alice, bob = (socketio.AsyncClient(reconnection=False) for _ in range(2))
    for event, handler in heard.handlers().items():
        bob.on(event, handler)
    for client, node, uid in ((alice, nodes[0], "alice"), (bob, nodes[1], "bob")):
        client.on("disconnect", heard.closed.append)
        await client.connect(url(node, uid), transports=transports)
        check(await client.call("join", "r", timeout=PATIENCE_SECONDS), "join")
    for publish in PUBLISHES:
        check(await alice.call("publish", publish, timeout=PATIENCE_SECONDS), publish)
    try:
        await asyncio.wait_for(heard.whole.wait(), PATIENCE_SECONDS)
    except asyncio.TimeoutError:
        pass  # What is missing is told below.
    heard.check()
    for client in (alice, bob):
        await client.disconnect()


for name, transports in TRANSPORTS.items():
    threaded(sys.argv[1:], transports)
    print(f"threaded by {name}: passed", flush=True)
    asyncio.run(by_asyncio(sys.argv[1:], transports))
    print(f"asyncio by {name}: passed", flush=True)
