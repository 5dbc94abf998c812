"""Attaches further volumes to an instance and prints a JSON array of all its volumes' ids, by device.

    volumes.py ENDPOINT INSTANCE COUNT
"""

import json
import sys

from aws import Clients, pages


def main():
    endpoint, instance, count = sys.argv[1:]
    aws = Clients(endpoint)
    [reservation] = aws.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
    zone = reservation["Instances"][0]["Placement"]["AvailabilityZone"]
    for number in range(int(count)):
        volume = aws.ec2.create_volume(AvailabilityZone=zone, Size=8, Encrypted=True)
        device = f"/dev/sd{chr(ord('m') + number)}"
        aws.ec2.attach_volume(VolumeId=volume["VolumeId"], InstanceId=instance, Device=device)
    attached = [{"Name": "attachment.instance-id", "Values": [instance]}]
    found = pages(aws.ec2, "describe_volumes", "Volumes", Filters=attached)
    found.sort(key=lambda volume: volume["Attachments"][0]["Device"])
    print(json.dumps([volume["VolumeId"] for volume in found]))


if __name__ == "__main__":
    main()
