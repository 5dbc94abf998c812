"""Corrections to MiniStack 1.5.33 where it departs from AWS in what the response rests on.

Each would let a right state machine hang, or a wrong one pass. Applied by serve.py in the server's own process; nothing on
disk changes. To be looked at again with every version of MiniStack. What is left as it is: heartbeats are not watched for,
no execution can be redriven, events and messages whose function fails are not delivered again.
"""

import contextlib
import json
import threading

from ministack.services import eventbridge, stepfunctions
from ministack.services.cloudformation import provisioners

# By function: its turns, as many as its reserved concurrency.
turns = {}


def apply():
    execute = stepfunctions._execute_task
    call = stepfunctions._call_lambda
    start = stepfunctions._start_execution
    nested = stepfunctions._invoke_nested_start_execution
    distributed = stepfunctions._run_distributed_map
    bounded = stepfunctions._invoke_resource_with_timeout
    functions = provisioners._RESOURCE_HANDLERS["AWS::Lambda::Function"]
    create = functions["create"]

    def execute_task(state, given, execution, context):
        """TimeoutSecondsPath bounds a task (Developer Guide, "Task workflow state")."""
        path = state.get("TimeoutSecondsPath")
        if path:
            state = {**state, "TimeoutSeconds": stepfunctions._resolve_path(path, given)}
        return execute(state, given, execution, context)

    def run_distributed(state, given, effective, iterator, execution, context):
        """MaxConcurrencyPath bounds a Map (Developer Guide, "Distributed Map state fields")."""
        path = state.get("MaxConcurrencyPath")
        if path:
            state = {**state, "MaxConcurrency": stepfunctions._resolve_path(path, effective)}
        return distributed(state, given, effective, iterator, execution, context)

    def call_lambda(function, event):
        """A throttled function is Lambda.TooManyRequestsException (Developer Guide, "Handling transient Lambda service
        exceptions")."""
        try:
            return call(function, event)
        except stepfunctions._ExecutionError as error:
            if error.error == "Lambda.Unknown" and "TooManyRequestsException" in error.cause:
                error.error = "Lambda.TooManyRequestsException"
            raise

    def start_execution(data):
        """What runs already under this name and with this input is what was wanted (API Reference, StartExecution)."""
        machine = data["stateMachineArn"].replace(":stateMachine:", ":execution:")
        running = stepfunctions._executions.get(f"{machine}:{data.get('name')}")
        same = running and running["status"] == "RUNNING" and running["input"] == data.get("input")
        if same:
            told = {"executionArn": running["executionArn"], "startDate": running["startDate"]}
            return stepfunctions.json_response(told)
        return start(data)

    def start_nested(resource, given):
        """Errors of the service are named by it (Developer Guide, "Error handling in Step Functions")."""
        try:
            return nested(resource, given)
        except stepfunctions._ExecutionError as error:
            error.error = f"StepFunctions.{error.error}Exception"
            raise

    def create_function(logical, properties, stack):
        """ReservedConcurrentExecutions of a template is kept (Template Reference, "AWS::Lambda::Function")."""
        name, attributes = create(logical, properties, stack)
        reserved = int(properties.get("ReservedConcurrentExecutions", 0))
        if reserved:
            turns[name] = threading.Semaphore(reserved)
        return name, attributes

    def invoke_bounded(resource, given, seconds):
        with turn(given):
            return bounded(resource, given, seconds)

    functions["create"] = create_function
    stepfunctions._invoke_resource_with_timeout = invoke_bounded
    stepfunctions._start_execution = start_execution
    stepfunctions._invoke_nested_start_execution = start_nested
    stepfunctions._run_distributed_map = run_distributed
    stepfunctions._execute_task = execute_task
    stepfunctions._call_lambda = call_lambda
    stepfunctions._invoke_with_callback = invoke_with_callback
    # Tests play the services whose events the rules are for.
    eventbridge._put_events.__defaults__ = (True,)


def turn(given):
    """Beyond its reserved concurrency a task waits for its function's turn, and its own time does not run yet. AWS refuses the
    call and the state machine tries again after a while, with a new time-out ("Lambda quotas"; "Error handling in Step Functions");
    here that while is hurried, and all tries would be used up before anything else has ended."""
    name = str(given.get("FunctionName", "")).rpartition(":")[2] if isinstance(given, dict) else ""
    return turns.get(name, contextlib.nullcontext())


def invoke_with_callback(_resource, payload, token, state):
    """A task that waits for its token fails where its function does (Developer Guide, "Wait for a Callback with Task
    Token"): it does not wait for a word that nobody can give."""
    function = stepfunctions._resolve_lambda_function_ref(payload["FunctionName"], optimized=True)
    told = threading.Event()
    task = {"event": told, "result": None, "error": None, "heartbeat": None}
    stepfunctions._task_tokens[token] = task
    try:
        with turn(payload):
            stepfunctions._call_lambda(function, payload["Payload"])
        seconds = state["TimeoutSeconds"]
        if not told.wait(timeout=seconds):
            raise stepfunctions._ExecutionError("States.Timeout", f"no word in {seconds} s")
    finally:
        stepfunctions._task_tokens.pop(token, None)
    if task["error"]:
        raise stepfunctions._ExecutionError(task["error"]["Error"], task["error"]["Cause"])
    return json.loads(task["result"])
