"""Deploys the response stack into MiniStack, as cloudformation/ has it, and prints what it has made.

    response.py MINISTACK MOTO OPTIONS.json

Options: "name" of the stack; "template", "machine", "many": files; "program": the bootstrap; "wrapped": what it wraps, or
null; "settings": text of cleanroom.toml; "bucket", "key" of the evidence, in moto; "environment" of the functions besides
what the template says; "parameters" of the stack besides. The artifacts go into both emulators: MiniStack takes the program from its own S3, and the functions
read their settings where they read everything else. Independent of Cleanroom's own adapters on purpose.
"""

import hashlib
import io
import json
import pathlib
import sys
import zipfile

from aws import Clients

ARTIFACTS = "cleanroom-artifacts"


def pack(options):
    """A zip with the program as bootstrap."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, path in [("bootstrap", options["program"]), ("wrapped", options["wrapped"])]:
            if path is None:
                continue
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            content = pathlib.Path(path).read_bytes()
            if content.startswith(b"#!python"):
                content = content.replace(b"#!python", f"#!{sys.executable}".encode(), 1)
            archive.writestr(info, content)
    return packed.getvalue()


def keyed(name, content):
    return f"{hashlib.sha256(content).hexdigest()}/{name}"


def main():
    ministack, moto, options = sys.argv[1:]
    options = json.loads(pathlib.Path(options).read_text())
    aws, world = Clients(ministack), Clients(moto)
    template = pathlib.Path(options["template"]).read_bytes()
    machine = pathlib.Path(options["machine"]).read_bytes()
    many = pathlib.Path(options["many"]).read_bytes()
    settings = options["settings"].encode()
    for clients in (aws, world):
        clients.s3.create_bucket(Bucket=ARTIFACTS)
    keys = {}
    for parameter, name, content in [
        ("ProgramKey", "cleanroom-lambda.zip", pack(options)),
        ("MachineKey", "response.asl.json", machine),
        ("ManyKey", "response-many.asl.json", many),
        ("SettingsKey", "cleanroom.toml", settings),
        (None, "response.yaml", template),
    ]:
        key = keyed(name, content)
        aws.s3.put_object(Bucket=ARTIFACTS, Key=key, Body=content)
        if parameter == "SettingsKey":
            world.s3.put_object(Bucket=ARTIFACTS, Key=key, Body=content)
        keys[parameter] = key
    at = keys.pop(None)
    parameters = {
        **keys,
        "ArtifactsBucket": ARTIFACTS,
        "Bucket": options["bucket"],
        "MakeBucket": "false",
        "Key": options["key"],
        **options["parameters"],
    }
    aws.cloudformation.create_stack(
        StackName=options["name"],
        TemplateURL=f"{ministack}/{ARTIFACTS}/{at}",
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    waiter = aws.cloudformation.get_waiter("stack_create_complete")
    try:
        waiter.wait(StackName=options["name"], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    except Exception as error:
        events = aws.cloudformation.describe_stack_events(StackName=options["name"])
        failed = [
            (e["LogicalResourceId"], e.get("ResourceStatusReason"))
            for e in events["StackEvents"]
            if "FAILED" in e["ResourceStatus"]
        ]
        sys.exit(f"{error}: {failed}")
    stack = aws.cloudformation.describe_stacks(StackName=options["name"])["Stacks"][0]
    logs = []
    for name in ("intake", "step", "contain-only"):
        name = f"{options['name']}-{name}"
        function = aws["lambda"].get_function_configuration(FunctionName=name)
        variables = {**function["Environment"]["Variables"], **options["environment"]}
        aws["lambda"].update_function_configuration(
            FunctionName=name, Environment={"Variables": variables}
        )
        logs.append(function["LoggingConfig"]["LogGroup"])
    outputs = {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}
    queue = aws.sqs.create_queue(QueueName=f"{options['name']}-notices")["QueueUrl"]
    attributes = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    aws.sns.subscribe(
        TopicArn=outputs["NotifyTopic"],
        Protocol="sqs",
        Endpoint=attributes["Attributes"]["QueueArn"],
        Attributes={"RawMessageDelivery": "true"},
    )
    print(json.dumps({"outputs": outputs, "logs": logs, "notices": queue}))


if __name__ == "__main__":
    main()
