"""Serves one emulator on a free port of 127.0.0.1, for as long as its standard input is open.

    serve.py moto
    serve.py ministack [--waits FACTOR]
    serve.py microburst --upstream http://127.0.0.1:PORT [--seed NUMBER]
    serve.py router --upstream http://127.0.0.1:PORT --ministack http://127.0.0.1:PORT

moto and MiniStack count what they are asked (counting.py).

Listens first and then prints one line, {"port": NUMBER}: nobody else can take the port between.
Everything printed later goes to standard error. When standard input ends, which it does when the
parent dies in whatever way, or when --lifetime seconds are over, the process and its children are
killed; an alarm kills at least the process should Python be stuck.
"""

import argparse
import asyncio
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("emulator", choices=["moto", "ministack", "microburst", "router"])
    parser.add_argument("--upstream")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ministack")
    # What state machines wait, and wait between tries, times this.
    parser.add_argument("--waits", type=float)
    parser.add_argument("--lifetime", type=int, default=7200)
    options = parser.parse_args()
    die_with_parent(options.lifetime)

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    port = listener.getsockname()[1]
    serve = {"moto": moto, "ministack": ministack, "microburst": microburst, "router": router}
    serve[options.emulator](listener, port, options)


def die_with_parent(lifetime):
    signal.alarm(lifetime + 5)

    def watch():
        # Nothing is ever written there: readable means closed.
        select.select([0], [], [], lifetime)
        # The parent gives us a process group of our own; a group shared with others is spared.
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def announce(port):
    print(json.dumps({"port": port}), flush=True)
    os.dup2(2, 1)


def moto(listener, port, _options):
    # A page of S3 has a thousand names (API Reference, ListObjectsV2); moto's own default is a hundred.
    os.environ.update(MOTO_PORT=str(port), MOTO_S3_DEFAULT_MAX_KEYS="1000")
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    import corrections
    import counting

    corrections.apply()
    application = counting.wsgi(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1",
        port,
        application,
        threaded=True,
        request_handler=MotoRequestHandler,
        fd=listener.fileno(),
    )
    announce(port)
    server.serve_forever()


def ministack(listener, port, options):
    os.environ.update(
        GATEWAY_PORT=str(port),
        MINISTACK_ACCOUNT_ID="123456789012",
        MINISTACK_REGION="us-east-1",
        # Listeners on fixed ports that nothing here needs.
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
    )
    if options.waits is not None:
        os.environ["SFN_WAIT_SCALE"] = str(options.waits)
    from hypercorn.asyncio import serve
    from hypercorn.config import Config
    from ministack.app import app

    import counting
    import ministack_corrections

    ministack_corrections.apply()
    counting.watch_machines()
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.keep_alive_timeout = 75
    announce(port)
    asyncio.run(serve(counting.asgi(app), config))


def microburst(listener, port, options):
    if not (options.upstream or "").startswith("http://127.0.0.1:"):
        sys.exit("microburst: --upstream must be an emulator, http://127.0.0.1:PORT")
    from aiohttp import web
    from microburst.app import make_app
    from microburst.core.pipeline import Microburst
    from microburst.detection import host

    reset_for_good()
    # The signature names the service. Reading it off host names would load all the models of
    # botocore with the first request, for ten seconds.
    host._endpoint_prefix_map = dict
    # microburst has no seed of its own; its draws come from this generator, one a request.
    random.seed(options.seed)
    proxy = Microburst(options.upstream, rules=[], resign=False)
    announce(port)
    web.run_app(make_app(proxy), sock=listener, print=None, access_log=None)


def reset_for_good():
    """microburst's reset only closes the connection, which a client sees as an orderly end: its
    kernel must be told not to linger."""
    from microburst.effects import reset

    original = reset.apply

    async def apply(request, decision):
        if decision.reset and request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return await original(request, decision)

    reset.apply = apply


def router(listener, port, options):
    """Requests for these services go to MiniStack, all others to moto."""
    if any(not (u or "").startswith("http://127.0.0.1:") for u in [options.upstream, options.ministack]):
        sys.exit("router: both addresses must be emulators, http://127.0.0.1:PORT")
    from aiohttp import ClientSession, web

    services = {"sns", "sqs", "states"}
    connections = []

    async def lead(request):
        if request.path == "/_router/health":
            return web.Response()
        if not connections:
            connections.append(ClientSession(auto_decompress=False))
        # The signature names the service: Credential=KEY/DATE/REGION/SERVICE/aws4_request.
        scope = request.headers.get("Authorization", "").partition("Credential=")[2].split("/")
        service = scope[3] if len(scope) > 3 else ""
        to = options.ministack if service in services else options.upstream
        async with connections[0].request(
            request.method,
            to + request.raw_path,
            headers=request.headers,
            data=await request.read(),
            allow_redirects=False,
        ) as answer:
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("connection", "content-length", "transfer-encoding")
            }
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", lead)
    announce(port)
    web.run_app(application, sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
