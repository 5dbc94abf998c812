#!python -ISs
"""Runs cleanroom-lambda as its runtime would, and fails it where a test says so.

Lambda's runtime interface on both sides: to Lambda it is the program, to the program (`wrapped`, beside it) it is Lambda.
A file INSTANCE.STEP in the folder $CLEANROOM_TEST_FAULTS holds what happens to this step of this instance, and how often:

    crash N   the process ends before the program has seen the request
    lose N    it ends when the program has done what it was asked, and before it answers
    hang N    nobody answers
"""

import http.client
import http.server
import json
import os
import pathlib
import subprocess
import threading

LAMBDA = os.environ["AWS_LAMBDA_RUNTIME_API"]
FAULTS = pathlib.Path(os.environ["CLEANROOM_TEST_FAULTS"])
lost = set()
child = None


def end():
    child.kill()
    os._exit(1)


def fault(event):
    """The fault that this event is to meet, which then has happened once more."""
    path = FAULTS / f"{event.get('instance')}.{event.get('step')}"
    try:
        kind, left = path.read_text().split()
    except FileNotFoundError:
        return None
    if left == "1":
        path.unlink()
    else:
        path.write_text(f"{kind} {int(left) - 1}")
    return kind


class Between(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def pass_on(self, body=None):
        connection = http.client.HTTPConnection(LAMBDA)
        connection.request(self.command, self.path, body)
        answer = connection.getresponse()
        return answer, answer.read()

    def answer(self, answer, body):
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower().startswith(("lambda-", "content-type")):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        answer, body = self.pass_on()
        event = json.loads(body)
        kind = fault(event) if isinstance(event, dict) else None
        if kind == "crash":
            end()
        if kind == "hang":
            threading.Event().wait()
        if kind == "lose":
            lost.add(answer.getheader("Lambda-Runtime-Aws-Request-Id"))
        self.answer(answer, body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if any(request in self.path for request in lost):
            end()
        self.answer(*self.pass_on(body))


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
program = pathlib.Path(__file__).parent / "wrapped"
environment = {**os.environ, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}"}
child = subprocess.Popen([program], env=environment)
os._exit(child.wait() % 256)
