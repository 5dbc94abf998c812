"""Counts what an emulator is asked, at its own door: what Cleanroom says of itself is not believed.

GET /_calls answers one JSON object, of everything since the start:

    calls        by "service:operation", of AWS's SDK for Rust alone: who watches is not counted
    last         when each was asked last, in seconds since 1970
    invocations  of Lambda functions, by their names          (MiniStack)
    states       that executions and their branches entered   (MiniStack)
    functions    processes started, the CPU seconds that they took, the most memory that one had, KiB (MiniStack)

The operation is the one that the protocol names; of S3 and others that have none, method and what is in the address.
"""

import io
import json
import os
import re
import threading
import time
from collections import Counter
from urllib.parse import parse_qs

OURS = "aws-sdk-rust/"
ACTION = re.compile(rb"(?:^|&)Action=(\w+)")
# What the address of a request to S3 tells, first fit: method, what is in the query, whether there is a key.
S3 = [
    ("GET", "list-type", False, "ListObjectsV2"),
    ("GET", "versions", False, "ListObjectVersions"),
    ("PUT", "legal-hold", True, "PutObjectLegalHold"),
    ("GET", None, True, "GetObject"),
    ("HEAD", None, True, "HeadObject"),
    ("PUT", None, True, "PutObject"),
]

lock = threading.Lock()
counted = {"calls": Counter(), "last": {}, "invocations": Counter(), "states": 0}
# Of each process of a function: CPU seconds, and KiB at most.
processes = {}


def told():
    with lock:
        seconds = [cpu for cpu, _ in processes.values()]
        functions = {
            "processes": len(processes),
            "cpu_seconds": sum(seconds),
            "peak_kib": max([peak for _, peak in processes.values()], default=0),
        }
        return json.dumps({**counted, "functions": functions}).encode()


def note(headers, method, path, query, body):
    """Counts a request, by its headers in lower case."""
    if OURS not in headers.get("user-agent", ""):
        return
    # The signature names the service: Credential=KEY/DATE/REGION/SERVICE/aws4_request.
    scope = headers.get("authorization", "").partition("Credential=")[2].split("/")
    service = scope[3] if len(scope) > 3 else "unsigned"
    action = ACTION.search(body or b"")
    target = headers.get("x-amz-target", "").rpartition(".")[2]
    if action:
        operation = action[1].decode()
    elif target:
        operation = target
    elif service == "s3":
        operation = of_s3(method, path, parse_qs(query, keep_blank_values=True))
    else:
        operation = f"{method} /{path.strip('/').partition('/')[0]}"
    name = f"{service}:{operation}"
    with lock:
        counted["calls"][name] += 1
        counted["last"][name] = time.time()


def of_s3(method, path, query):
    key = "/" in path.strip("/")
    for known, parameter, has_key, operation in S3:
        if (known, has_key) == (method, key) and (parameter is None or parameter in query):
            return operation
    return " ".join([method, *sorted(query)])


def is_form(kind):
    return (kind or "").startswith("application/x-www-form-urlencoded")


def wsgi(application):
    def call(environ, start_response):
        if environ["PATH_INFO"] == "/_calls":
            answer = told()
            start_response("200 OK", [("Content-Length", str(len(answer)))])
            return [answer]
        body = None
        if is_form(environ.get("CONTENT_TYPE")):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
        names = ["USER_AGENT", "AUTHORIZATION", "X_AMZ_TARGET"]
        headers = {n.lower().replace("_", "-"): environ.get(f"HTTP_{n}", "") for n in names}
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        note(headers, method, path, environ.get("QUERY_STRING", ""), body)
        return application(environ, start_response)

    return call


def asgi(application):
    async def call(scope, receive, send):
        if scope["type"] != "http":
            return await application(scope, receive, send)
        if scope["path"] == "/_calls":
            answer = told()
            length = [(b"content-length", str(len(answer)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            return await send({"type": "http.response.body", "body": answer})
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        if not is_form(headers.get("content-type")):
            note(headers, scope["method"], scope["path"], scope["query_string"].decode(), None)
            return await application(scope, receive, send)

        async def noted():
            message = await receive()
            # An action stands at the beginning of its form.
            if message["type"] == "http.request" and ACTION.search(message["body"]):
                note(headers, scope["method"], scope["path"], "", message["body"])
            return message

        return await application(scope, noted, send)

    return call


def watch_machines():
    """Counts MiniStack's states, invocations and processes where it goes through them."""
    from ministack.core.lambda_runtime import ProvidedWorker
    from ministack.services import lambda_svc, stepfunctions

    def entered(handler):
        def handle(*arguments, **named):
            with lock:
                counted["states"] += 1
            return handler(*arguments, **named)

        return handle

    for kind in ("pass", "task", "choice", "wait", "parallel", "map"):
        name = f"_execute_{kind}"
        setattr(stepfunctions, name, entered(getattr(stepfunctions, name)))

    add_event = stepfunctions._add_event

    def ended(execution, kind, details=None):
        if kind in ("SucceedStateEntered", "FailStateEntered"):
            with lock:
                counted["states"] += 1
        return add_event(execution, kind, details)

    stepfunctions._add_event = ended
    dispatch = lambda_svc._execute_function_dispatch

    def dispatched(function, config, *arguments):
        with lock:
            counted["invocations"][config["FunctionName"]] += 1
        return dispatch(function, config, *arguments)

    lambda_svc._execute_function_dispatch = dispatched
    invoke = ProvidedWorker.invoke

    def invoked(self, *arguments, **named):
        try:
            return invoke(self, *arguments, **named)
        finally:
            measure(self._proc)

    ProvidedWorker.invoke = invoked


def measure(process):
    """What a process has taken so far (proc(5), proc_pid_status(5))."""
    if process is None:
        return
    try:
        with open(f"/proc/{process.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{process.pid}/status", encoding="ascii", errors="replace") as file:
            peak = re.search(r"VmHWM:\s+(\d+)", file.read())
    except OSError:
        return
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    with lock:
        processes[process.pid] = (seconds, int(peak[1]) if peak else 0)
