"""Reads what a case's stack has made and prints one JSON object.

    room.py ENDPOINT BUCKET CASE

Independent of Cleanroom's own adapters on purpose, and read-only. "volumes" are the room's copies in
the order of their devices; "signals" what resources of the stack were signalled, oldest first.
"""

import base64
import json
import sys

from aws import Clients, pages
from botocore.exceptions import ClientError


def main():
    endpoint, bucket, case = sys.argv[1:]
    aws = Clients(endpoint)
    print(json.dumps({"stack": stack(aws, case), "objects": objects(aws, bucket, case)}))


def stack(aws, case):
    name = f"cleanroom-{case}"
    try:
        [found] = aws.cloudformation.describe_stacks(StackName=name)["Stacks"]
    except ClientError:
        return None
    resources = aws.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    ids = {r["LogicalResourceId"]: r.get("PhysicalResourceId") for r in resources}
    return {
        "status": found["StackStatus"],
        "resources": ids,
        "instance": instance(aws, ids.get("Room")),
        "volumes": volumes(aws, ids.get("Room")),
        "signals": signals(aws, name),
    }


def instance(aws, room):
    if room is None:
        return None
    [reservation] = aws.ec2.describe_instances(InstanceIds=[room])["Reservations"]
    [found] = reservation["Instances"]
    answer = aws.ec2.describe_instance_attribute(InstanceId=room, Attribute="userData")
    data = answer.get("UserData", {}).get("Value", "")
    return {
        "id": room,
        "state": found["State"]["Name"],
        "user_data": base64.b64decode(data).decode(),
    }


def volumes(aws, room):
    if room is None:
        return []
    attached = [{"Name": "attachment.instance-id", "Values": [room]}]
    found = pages(aws.ec2, "describe_volumes", "Volumes", Filters=attached)
    found = [v for v in found if v.get("SnapshotId")]
    wanted = sorted({v["SnapshotId"] for v in found})
    known = aws.ec2.describe_snapshots(SnapshotIds=wanted)["Snapshots"] if wanted else []
    source = {s["SnapshotId"]: s["VolumeId"] for s in known}
    return [
        {"id": v["VolumeId"], "snapshot": v["SnapshotId"], "source": source.get(v["SnapshotId"])}
        for v in sorted(found, key=lambda v: v["Attachments"][0]["Device"])
    ]


def signals(aws, name):
    events = pages(aws.cloudformation, "describe_stack_events", "StackEvents", StackName=name)
    said = [
        (e["Timestamp"], e["LogicalResourceId"], e.get("ResourceStatusReason", "")) for e in events
    ]
    return [[who, what] for _, who, what in sorted(said) if what.startswith("Received ")]


def objects(aws, bucket, case):
    prefix = f"cases/{case}/"
    found = pages(aws.s3, "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix)
    return {o["Key"]: o["Size"] for o in found}


if __name__ == "__main__":
    main()
