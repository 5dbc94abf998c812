"""Makes, signals, reads and deletes a stack in moto, and prints one JSON object.

    stack.py ENDPOINT create NAME TEMPLATE PARAMETERS.json
    stack.py ENDPOINT signal NAME RESOURCE UNIQUE-ID STATUS
    stack.py ENDPOINT show NAME
    stack.py ENDPOINT delete NAME

What it prints is what is true of the stack then: enough to boot the machine that it describes.
Independent of Cleanroom's own adapters on purpose.
"""

import base64
import json
import pathlib
import sys

from aws import Clients, only, pages


def tags(item):
    return {t["Key"]: t["Value"] for t in item.get("Tags", [])}


def machine(aws, instance_id):
    """An instance as whoever boots it must know it."""
    found = aws.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    instance = only([i for r in found for i in r["Instances"]], instance_id)
    attribute = aws.ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
    attached = [{"Name": "attachment.instance-id", "Values": [instance_id]}]
    volumes = pages(aws.ec2, "describe_volumes", "Volumes", Filters=attached)
    return {
        "instance": instance_id,
        "state": instance["State"]["Name"],
        "image": instance["ImageId"],
        "subnet": instance.get("SubnetId"),
        "private_ip": instance.get("PrivateIpAddress"),
        "public_ip": instance.get("PublicIpAddress"),
        "groups": sorted(g["GroupId"] for g in instance["SecurityGroups"]),
        "profile": (instance.get("IamInstanceProfile") or {}).get("Arn"),
        "metadata_options": instance.get("MetadataOptions"),
        "tags": tags(instance),
        "user_data": base64.b64decode(attribute["UserData"]["Value"]).decode(),
        "volumes": [
            {
                "id": v["VolumeId"],
                "device": v["Attachments"][0]["Device"],
                "snapshot": v.get("SnapshotId") or None,
                "gib": v["Size"],
                "encrypted": v["Encrypted"],
                "tags": tags(v),
            }
            for v in sorted(volumes, key=lambda v: v["Attachments"][0]["Device"])
        ],
    }


def show(aws, name):
    summaries = pages(aws.cloudformation, "list_stacks", "StackSummaries")
    summary = only([s for s in summaries if s["StackName"] == name], name)
    if summary["StackStatus"] == "DELETE_COMPLETE":
        return {"stack": summary["StackId"], "status": summary["StackStatus"]}
    stack = only(aws.cloudformation.describe_stacks(StackName=name)["Stacks"], name)
    resources = aws.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    events = pages(aws.cloudformation, "describe_stack_events", "StackEvents", StackName=name)
    room = [r["PhysicalResourceId"] for r in resources if r["LogicalResourceId"] == "Room"]
    return {
        "stack": stack["StackId"],
        "status": stack["StackStatus"],
        "outputs": {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])},
        "resources": {r["LogicalResourceId"]: r["ResourceType"] for r in resources},
        "signals": [
            {"resource": e["LogicalResourceId"], "reason": e["ResourceStatusReason"]}
            for e in sorted(events, key=lambda e: e["Timestamp"])
            if "signal with UniqueId" in e.get("ResourceStatusReason", "")
        ],
        "room": machine(aws, room[0]) if room else None,
    }


def create(aws, name, template, parameters):
    given = json.loads(pathlib.Path(parameters).read_text(encoding="utf-8"))
    aws.cloudformation.create_stack(
        StackName=name,
        TemplateBody=pathlib.Path(template).read_text(encoding="utf-8"),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
        Capabilities=["CAPABILITY_IAM"],
    )


def signal(aws, name, resource, unique, status):
    aws.cloudformation.signal_resource(
        StackName=name, LogicalResourceId=resource, UniqueId=unique, Status=status
    )


def delete(aws, name):
    aws.cloudformation.delete_stack(StackName=name)


def main():
    endpoint, operation, name, *rest = sys.argv[1:]
    aws = Clients(endpoint)
    if operation != "show":
        {"create": create, "signal": signal, "delete": delete}[operation](aws, name, *rest)
    print(json.dumps(show(aws, name), sort_keys=True))


if __name__ == "__main__":
    main()
