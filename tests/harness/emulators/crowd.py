"""Reads what is true of all instances of a fleet now, in as few calls as there are pages, and prints one JSON object.

    crowd.py ENDPOINT WORLD.json

    groups     each security group, and whether it lets anything in or out
    interfaces by instance: each interface, and its groups
    snapshots  by instance: each of its volumes, and the snapshots of it that have a case's tag
    claims     by instance: the objects that claim it
    cases      the folders of cases

Independent of Cleanroom's own adapters on purpose, and read-only.
"""

import json
import sys

from aws import Clients, pages


def main():
    endpoint, world_file = sys.argv[1:]
    aws = Clients(endpoint)
    with open(world_file, encoding="utf-8") as file:
        world = json.load(file)
    wanted = set(world["instances"])
    groups = {
        g["GroupId"]: bool(g["IpPermissions"] or g["IpPermissionsEgress"])
        for g in pages(aws.ec2, "describe_security_groups", "SecurityGroups")
    }
    interfaces = {instance: {} for instance in wanted}
    for n in pages(aws.ec2, "describe_network_interfaces", "NetworkInterfaces"):
        owner = n.get("Attachment", {}).get("InstanceId")
        if owner in wanted:
            interfaces[owner][n["NetworkInterfaceId"]] = [g["GroupId"] for g in n["Groups"]]
    volumes = {v["id"]: i["instance"] for i in world["every"] for v in i["volumes"]}
    snapshots = {instance: {} for instance in wanted}
    for volume, instance in volumes.items():
        if instance in wanted:
            snapshots[instance][volume] = []
    for s in pages(aws.ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"]):
        instance = volumes.get(s["VolumeId"])
        if instance in wanted and any(t["Key"] == "cleanroom:case" for t in s.get("Tags", [])):
            snapshots[instance][s["VolumeId"]].append(s["SnapshotId"])
    claims = {instance: [] for instance in wanted}
    bucket = world["bucket"]
    for item in pages(
        aws.s3, "list_objects_v2", "Contents", Bucket=bucket, Prefix="instances/"
    ):
        instance = item["Key"].split("/")[3]
        claims.setdefault(instance, []).append(item["Key"])
    folders = aws.s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix="cases/", Delimiter="/"
    )
    cases = [f["Prefix"].split("/")[1] for page in folders for f in page.get("CommonPrefixes", [])]
    state = {
        "groups": groups,
        "interfaces": interfaces,
        "snapshots": snapshots,
        "claims": claims,
        "cases": cases,
    }
    print(json.dumps(state, sort_keys=True))


if __name__ == "__main__":
    main()
