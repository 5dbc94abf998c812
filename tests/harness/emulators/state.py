"""Reads what is true of one instance now and prints one JSON object.

    state.py ENDPOINT WORLD.json INSTANCE

Independent of Cleanroom's own adapters on purpose, and read-only: messages stay in the queue. What
the emulator does not answer is null with the reason in "unread".
"""

import json
import sys

from aws import Clients, only, pages
from botocore.exceptions import ClientError

GUARDS = ["disableApiTermination", "disableApiStop", "instanceInitiatedShutdownBehavior"]


def tags(item):
    return {t["Key"]: t["Value"] for t in item.get("Tags", [])}


def instance_facts(aws, instance):
    instance_id = instance["InstanceId"]
    guards = {}
    for name in GUARDS:
        answer = aws.ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=name)
        guards[name] = answer[name[0].upper() + name[1:]]["Value"]
    return {
        "instance": instance_id,
        "state": instance["State"]["Name"],
        "public_ip": instance.get("PublicIpAddress"),
        "security_groups": sorted(g["GroupId"] for g in instance["SecurityGroups"]),
        "guards": guards,
        "delete_on_termination": {
            b["DeviceName"]: b["Ebs"]["DeleteOnTermination"]
            for b in instance["BlockDeviceMappings"]
        },
        "volumes": {b["DeviceName"]: b["Ebs"]["VolumeId"] for b in instance["BlockDeviceMappings"]},
        "metadata_options": instance.get("MetadataOptions"),
        "tags": tags(instance),
    }


def interfaces(aws, instance_id):
    attached = [{"Name": "attachment.instance-id", "Values": [instance_id]}]
    found = pages(aws.ec2, "describe_network_interfaces", "NetworkInterfaces", Filters=attached)
    return [
        {
            "id": n["NetworkInterfaceId"],
            "device_index": n["Attachment"]["DeviceIndex"],
            "groups": sorted(g["GroupId"] for g in n["Groups"]),
            "private_ip": n["PrivateIpAddress"],
            "public_ip": (n.get("Association") or {}).get("PublicIp"),
            "allocation_id": (n.get("Association") or {}).get("AllocationId"),
            "ipv6": [a["Ipv6Address"] for a in n.get("Ipv6Addresses", [])],
            "tags": {t["Key"]: t["Value"] for t in n.get("TagSet", [])},
        }
        for n in sorted(found, key=lambda n: n["Attachment"]["DeviceIndex"])
    ]


def scaling(aws, instance_id):
    groups = pages(aws.autoscaling, "describe_auto_scaling_groups", "AutoScalingGroups")
    found = {
        g["AutoScalingGroupName"]: {
            "min": g["MinSize"],
            "desired": g["DesiredCapacity"],
            "max": g["MaxSize"],
            "suspended": sorted(p["ProcessName"] for p in g["SuspendedProcesses"]),
            "instances": {i["InstanceId"]: i["LifecycleState"] for i in g["Instances"]},
        }
        for g in groups
    }
    member_of = [name for name, g in found.items() if instance_id in g["instances"]]
    return {"asg": member_of[0] if member_of else None, "asgs": found}


def balancing(aws, instance):
    ours = {instance["InstanceId"]} | {
        a["PrivateIpAddress"]
        for n in instance["NetworkInterfaces"]
        for a in n["PrivateIpAddresses"]
    }
    targets = {}
    for group in pages(aws.elbv2, "describe_target_groups", "TargetGroups"):
        health = aws.elbv2.describe_target_health(TargetGroupArn=group["TargetGroupArn"])
        targets[group["TargetGroupArn"]] = [
            {
                "id": t["Target"]["Id"],
                "port": t["Target"]["Port"],
                "state": t["TargetHealth"]["State"],
            }
            for t in health["TargetHealthDescriptions"]
            if t["Target"]["Id"] in ours
        ]
    classic = {
        b["LoadBalancerName"]: {i["InstanceId"] for i in b["Instances"]}
        for b in pages(aws.elb, "describe_load_balancers", "LoadBalancerDescriptions")
    }
    return {
        "target_groups": targets,
        "classic_load_balancers": {n: bool(members & ours) for n, members in classic.items()},
    }


def copies(aws):
    snapshots = pages(aws.ec2, "describe_snapshots", "Snapshots", OwnerIds=["self"])
    # moto shows the snapshots of its public images as ours; those have no volume of ours.
    volumes = {v["VolumeId"] for v in pages(aws.ec2, "describe_volumes", "Volumes")}
    return {
        "snapshots": [
            {
                "id": s["SnapshotId"],
                "volume": s["VolumeId"],
                "state": s["State"],
                "description": s.get("Description"),
                "encrypted": s["Encrypted"],
                "kms_key": s.get("KmsKeyId"),
                "tags": tags(s),
            }
            for s in snapshots
            if s["VolumeId"] in volumes or s.get("Tags")
        ],
        "images": [
            {
                "id": i["ImageId"],
                "name": i["Name"],
                "state": i["State"],
                "snapshots": [
                    b["Ebs"]["SnapshotId"] for b in i["BlockDeviceMappings"] if "Ebs" in b
                ],
                "tags": tags(i),
            }
            for i in pages(aws.ec2, "describe_images", "Images", Owners=["self"])
        ],
    }


def identity(aws, world, instance_id):
    ours = [{"Name": "instance-id", "Values": [instance_id]}]
    associations = aws.ec2.describe_iam_instance_profile_associations(Filters=ours)
    associations = associations["IamInstanceProfileAssociations"]
    policies = {}
    if "role" in world:
        for name in aws.iam.list_role_policies(RoleName=world["role"])["PolicyNames"]:
            policy = aws.iam.get_role_policy(RoleName=world["role"], PolicyName=name)
            policies[name] = policy["PolicyDocument"]
    return {
        "profile_associations": [
            {
                "id": a["AssociationId"],
                "arn": a["IamInstanceProfile"]["Arn"],
                "state": a["State"],
            }
            for a in associations
        ],
        "role_policies": policies,
    }


def surroundings(aws, vpc):
    ours = [{"Name": "vpc-id", "Values": [vpc]}]
    groups = pages(aws.ec2, "describe_security_groups", "SecurityGroups", Filters=ours)
    addresses = aws.ec2.describe_addresses()["Addresses"]
    nacls = pages(aws.ec2, "describe_network_acls", "NetworkAcls", Filters=ours)
    return {
        "vpc_security_groups": {
            g["GroupId"]: {
                "name": g["GroupName"],
                "ingress": g["IpPermissions"],
                "egress": g["IpPermissionsEgress"],
                "tags": tags(g),
            }
            for g in groups
        },
        "network_acls": {n["NetworkAclId"]: n["Entries"] for n in nacls},
        "addresses": {
            a["AllocationId"]: {
                "public_ip": a["PublicIp"],
                "association_id": a.get("AssociationId"),
                "interface": a.get("NetworkInterfaceId") or None,
            }
            for a in addresses
        },
    }


def notices(aws, queue):
    """Every message in the queue, each once: the emulator hands out ten at a time, and hides
    what it handed out until they are given back."""
    bodies, handles = [], []
    while True:
        received = aws.sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=60
        ).get("Messages", [])
        if not received:
            break
        for message in received:
            handles.append(message["ReceiptHandle"])
            body = json.loads(message["Body"])
            attributes = body.get("MessageAttributes", {})
            bodies.append(
                {
                    "subject": body.get("Subject"),
                    "message": body["Message"],
                    "attributes": {n: a["Value"] for n, a in attributes.items()},
                }
            )
    for handle in handles:
        aws.sqs.change_message_visibility(
            QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0
        )
    return {"notices": bodies}


def evidence(aws, bucket):
    client = aws.s3
    found = pages(client, "list_object_versions", "Versions", Bucket=bucket)
    markers = pages(client, "list_object_versions", "DeleteMarkers", Bucket=bucket)
    objects = {}
    for version in found:
        objects.setdefault(version["Key"], []).append(
            {
                "version": version["VersionId"],
                "size": version["Size"],
                "latest": version["IsLatest"],
            }
        )
    return {"objects": objects, "delete_markers": sorted(m["Key"] for m in markers)}


def main():
    endpoint, world_file, instance_id = sys.argv[1:]
    aws = Clients(endpoint)
    with open(world_file, encoding="utf-8") as file:
        world = json.load(file)
    found = pages(aws.ec2, "describe_instances", "Reservations", InstanceIds=[instance_id])
    instance = only([i for r in found for i in r["Instances"]], instance_id)
    parts = [
        ("instance", lambda: instance_facts(aws, instance)),
        ("interfaces", lambda: {"interfaces": interfaces(aws, instance_id)}),
        ("scaling", lambda: scaling(aws, instance_id)),
        ("balancing", lambda: balancing(aws, instance)),
        ("copies", lambda: copies(aws)),
        ("identity", lambda: identity(aws, world, instance_id)),
        ("surroundings", lambda: surroundings(aws, world["vpc"])),
        ("notices", lambda: notices(aws, world["queue_url"])),
        ("evidence", lambda: evidence(aws, world["bucket"])),
    ]
    state = {"unread": {}}
    for name, read in parts:
        try:
            state.update(read())
        except ClientError as error:
            state["unread"][name] = str(error)
    print(json.dumps(state, default=str, sort_keys=True))


if __name__ == "__main__":
    main()
