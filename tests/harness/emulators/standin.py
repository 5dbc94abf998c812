#!python -ISs
"""Stands in for cleanroom-lambda: answers each step with facts that the contract allows, and does nothing.

Speaks the runtime interface of AWS Lambda. Besides, it ends its own tasks: as a person would who approves, and as a room's
agent that has published. It is what proves the state machines and the emulator, and nothing else.
"""

import json
import os
import urllib.request

API = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation"
FACTS = {
    "verify": {"verdict": "contain"},
    "open": {"approval": "none"},
    "isolate": {"contained": True},
    "contain": {"contained": True},
    "order": {"room": True, "seconds": 3600},
    "due": {"decision": "wait", "seconds": 60},
}


def states(action, **arguments):
    request = urllib.request.Request(
        os.environ["AWS_ENDPOINT_URL"],
        json.dumps(arguments).encode(),
        {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AWSStepFunctions.{action}",
            "Authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/"
            "states/aws4_request, SignedHeaders=host, Signature=0",
        },
    )
    return urllib.request.urlopen(request, timeout=30).read()


def answer(event):
    step = event["step"]
    if step == "preserve":
        if event["looked"]["round"] == 1:
            return {"seconds": 30}
        return {"done": True, "rooms": [{"n": n, "volumes": []} for n in (1, 2, 3)]}
    if step == "read_back":
        return {"going": event["looked"]["round"] == 1, "seconds": 30}
    if step in ("ask", "clean_room"):
        said = {"decision": "contain", "by": "a person"} if step == "ask" else {}
        states("SendTaskSuccess", taskToken=event["token"], output=json.dumps(said))
    return FACTS.get(step, {})


while True:
    with urllib.request.urlopen(f"{API}/next") as told:
        request = told.headers["Lambda-Runtime-Aws-Request-Id"]
        event = json.load(told)
    step = event.get("step") or event.get("detail-type") or "records"
    print(json.dumps({"step": step, "event": event}), flush=True)
    facts = answer(event) if "step" in event else {}
    body = json.dumps(facts).encode()
    urllib.request.urlopen(urllib.request.Request(f"{API}/{request}/response", body)).read()
