"""Makes, signals, reads and deletes a stack in moto, and prints one JSON object.

    stack.py ENDPOINT create NAME TEMPLATE PARAMETERS.json
    stack.py ENDPOINT signal NAME RESOURCE UNIQUE-ID STATUS
    stack.py ENDPOINT show NAME
    stack.py ENDPOINT delete NAME
    stack.py ENDPOINT look NAME BUCKET PREFIX

What it prints is what is true of the stack then: enough to boot the machine that it describes. "volumes" of the room are in
the order of their devices; "signals" what resources were signalled, oldest first. "look" changes nothing and fails for no
stack: it prints "stack", null where there is none any more, and "objects", the sizes of those below the prefix.
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
        "user_data": base64.b64decode(attribute.get("UserData", {}).get("Value", "")).decode(),
        "volumes": volumes(aws, instance_id),
    }


def volumes(aws, instance_id):
    """What is attached to an instance, with the volume that a copy's snapshot is of."""
    attached = [{"Name": "attachment.instance-id", "Values": [instance_id]}]
    found = pages(aws.ec2, "describe_volumes", "Volumes", Filters=attached)
    copied = sorted({v["SnapshotId"] for v in found if v.get("SnapshotId")})
    known = aws.ec2.describe_snapshots(SnapshotIds=copied)["Snapshots"] if copied else []
    source = {s["SnapshotId"]: s["VolumeId"] for s in known}
    return [
        {
            "id": v["VolumeId"],
            "device": v["Attachments"][0]["Device"],
            "snapshot": v.get("SnapshotId") or None,
            "source": source.get(v.get("SnapshotId")),
            "gib": v["Size"],
            "encrypted": v["Encrypted"],
            "tags": tags(v),
        }
        for v in sorted(found, key=lambda v: v["Attachments"][0]["Device"])
    ]


def named(aws, name):
    """Stacks of a name: one at most is there, the others were deleted."""
    listed = pages(aws.cloudformation, "list_stacks", "StackSummaries")
    return [s for s in listed if s["StackName"] == name]


def is_there(summary):
    return summary["StackStatus"] != "DELETE_COMPLETE"


def show(aws, name):
    listed = named(aws, name)
    summary = only([s for s in listed if is_there(s)] or listed[-1:], name)
    if not is_there(summary):
        return {"stack": summary["StackId"], "status": summary["StackStatus"]}
    stack = only(aws.cloudformation.describe_stacks(StackName=name)["Stacks"], name)
    resources = aws.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    events = pages(aws.cloudformation, "describe_stack_events", "StackEvents", StackName=name)
    ids = {r["LogicalResourceId"]: r.get("PhysicalResourceId") for r in resources}
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
        "room": machine(aws, ids["Room"]) if ids.get("Room") else None,
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


def look(aws, name, bucket, prefix):
    found = pages(aws.s3, "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix)
    return {
        "stack": show(aws, name) if any(map(is_there, named(aws, name))) else None,
        "objects": {o["Key"]: o["Size"] for o in found},
    }


def main():
    endpoint, operation, name, *rest = sys.argv[1:]
    aws = Clients(endpoint)
    if operation == "look":
        said = look(aws, name, *rest)
    else:
        if operation != "show":
            {"create": create, "signal": signal, "delete": delete}[operation](aws, name, *rest)
        said = show(aws, name)
    print(json.dumps(said, sort_keys=True))


if __name__ == "__main__":
    main()
