"""Builds a world in an emulator and prints one JSON object with every id in it.

    world.py ENDPOINT full
    world.py ENDPOINT plain
    world.py ENDPOINT fleet NUMBER

Fresh emulator expected: names are fixed. What moto's launch templates leave out (profile, metadata
options, second interface, address) is added to the instance afterwards, as an operator would.
"""

import base64
import json
import sys

from aws import REGION, Clients, only, pages

BUCKET = "cleanroom-evidence"
USER_DATA = "#!/bin/sh\nsystemctl enable --now web\n"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def statement(action, resource):
    content = {"Effect": "Allow", "Action": action, "Resource": resource}
    return json.dumps({"Version": "2012-10-17", "Statement": [content]})


def base(aws):
    """What is in every world: the evidence store, the topic and its reader, a key."""
    if aws.s3.list_buckets()["Buckets"]:
        sys.exit("the emulator is not empty: reset it first")
    aws.s3.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    aws.s3.put_object_lock_configuration(
        Bucket=BUCKET,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention},
    )
    blocks = ["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"]
    aws.s3.put_public_access_block(
        Bucket=BUCKET, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True)
    )
    tls_only = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    policy = {"Version": "2012-10-17", "Statement": [tls_only]}
    aws.s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))

    topic = aws.sns.create_topic(Name="cleanroom")["TopicArn"]
    queue = aws.sqs.create_queue(QueueName="cleanroom-notices")["QueueUrl"]
    attributes = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    queue_arn = attributes["Attributes"]["QueueArn"]
    aws.sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue_arn)
    key = aws.kms.create_key(Description="cleanroom case key")["KeyMetadata"]["Arn"]
    return {
        "region": REGION,
        "account": aws.sts.get_caller_identity()["Account"],
        "bucket": BUCKET,
        "topic_arn": topic,
        "queue_url": queue,
        "key_arn": key,
    }


def image(aws):
    """An Amazon Linux image whose root is /dev/sda1: moto adds a disk of that name to what a
    launch template maps, unless the template has it."""
    images = aws.ec2.describe_images(Owners=["amazon"])["Images"]
    names = {
        i["Name"]: i["ImageId"]
        for i in images
        if i["RootDeviceType"] == "ebs"
        and i["RootDeviceName"] == "/dev/sda1"
        and i["VirtualizationType"] == "hvm"
        and i.get("Platform") != "windows"
        and i["Architecture"] == "x86_64"
    }
    return names[min(names)]


def instance_of(aws, instance_id):
    found = aws.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    return only([i for r in found for i in r["Instances"]], instance_id)


def told(instance):
    """What the emulator says of an instance, in short."""
    return {
        "instance": instance["InstanceId"],
        "vpc": instance["VpcId"],
        "subnet": instance["SubnetId"],
        "image": instance["ImageId"],
        "private_ip": instance["PrivateIpAddress"],
        "interfaces": [
            {
                "id": n["NetworkInterfaceId"],
                "device_index": n["Attachment"]["DeviceIndex"],
                "subnet": n["SubnetId"],
                "private_ip": n["PrivateIpAddress"],
                "groups": sorted(g["GroupId"] for g in n["Groups"]),
            }
            for n in sorted(
                instance["NetworkInterfaces"], key=lambda n: n["Attachment"]["DeviceIndex"]
            )
        ],
        "volumes": [
            {"device": b["DeviceName"], "id": b["Ebs"]["VolumeId"]}
            for b in instance["BlockDeviceMappings"]
        ],
    }


def network(aws):
    vpc = aws.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        aws.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=REGION + zone)
        for n, zone in enumerate("ab", start=1)
    ]
    subnets = [s["Subnet"]["SubnetId"] for s in subnets]
    gateway = aws.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    aws.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    groups = {}
    for name, port, source in [("web", 443, "0.0.0.0/0"), ("admin", 22, "10.0.0.0/16")]:
        group = aws.ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)
        groups[name] = group["GroupId"]
        rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
        rule["IpRanges"] = [{"CidrIp": source, "Description": f"{name} in"}]
        if name == "web":
            rule["Ipv6Ranges"] = [{"CidrIpv6": "::/0"}]
        aws.ec2.authorize_security_group_ingress(GroupId=groups[name], IpPermissions=[rule])
    return vpc, subnets, groups


def profile(aws):
    role = "web-role"
    arn = aws.iam.create_role(
        RoleName=role, Path="/service/", AssumeRolePolicyDocument=json.dumps(TRUST)
    )["Role"]["Arn"]
    aws.iam.put_role_policy(
        RoleName=role,
        PolicyName="read-config",
        PolicyDocument=statement("s3:GetObject", "arn:aws:s3:::example-config/*"),
    )
    policy = aws.iam.create_policy(
        PolicyName="web-logs", PolicyDocument=statement("logs:PutLogEvents", "*")
    )["Policy"]["Arn"]
    aws.iam.attach_role_policy(RoleName=role, PolicyArn=policy)
    made = aws.iam.create_instance_profile(InstanceProfileName="web-servers", Path="/team/web/")
    aws.iam.add_role_to_instance_profile(InstanceProfileName="web-servers", RoleName=role)
    made = made["InstanceProfile"]
    return {
        "role": role,
        "role_arn": arn,
        "policy_arn": policy,
        "profile": made["InstanceProfileName"],
        "profile_arn": made["Arn"],
    }


def template(aws, group):
    disks = [("/dev/sda1", 8, True), ("/dev/sdf", 16, True), ("/dev/sdg", 32, False)]
    data = {
        "ImageId": image(aws),
        "InstanceType": "m5.large",
        "SecurityGroupIds": [group],
        "UserData": base64.b64encode(USER_DATA.encode()).decode(),
        "BlockDeviceMappings": [
            {
                "DeviceName": device,
                "Ebs": {"VolumeSize": size, "VolumeType": "gp3", "DeleteOnTermination": delete},
            }
            for device, size, delete in disks
        ],
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "web-1"}]}
        ],
    }
    made = aws.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
    return made["LaunchTemplate"]["LaunchTemplateId"]


def group_of(aws, name, launch_template, subnets, wanted, target_groups=()):
    """An Auto Scaling group with its instances; their ids."""
    aws.autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=1,
        DesiredCapacity=wanted,
        MaxSize=2 * wanted,
        LaunchTemplate={"LaunchTemplateId": launch_template, "Version": "$Latest"},
        VPCZoneIdentifier=",".join(subnets),
        TargetGroupARNs=list(target_groups),
        HealthCheckType="ELB" if target_groups else "EC2",
        HealthCheckGracePeriod=60,
    )
    found = aws.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
    return [i["InstanceId"] for i in only(found["AutoScalingGroups"], name)["Instances"]]


def target_group(aws, name, vpc, kind):
    made = aws.elbv2.create_target_group(
        Name=name, Protocol="HTTPS", Port=443, VpcId=vpc, TargetType=kind
    )
    return made["TargetGroups"][0]["TargetGroupArn"]


def add_to(aws, instance_id, subnets, groups):
    """The second interface, the address, the guards as they are by default."""
    second = aws.ec2.create_network_interface(
        SubnetId=subnets[0], Groups=[groups["admin"]], Description="admin"
    )["NetworkInterface"]["NetworkInterfaceId"]
    aws.ec2.attach_network_interface(
        NetworkInterfaceId=second, InstanceId=instance_id, DeviceIndex=1
    )
    primary = told(instance_of(aws, instance_id))["interfaces"][0]["id"]
    address = aws.ec2.allocate_address(Domain="vpc")
    association = aws.ec2.associate_address(
        AllocationId=address["AllocationId"], NetworkInterfaceId=primary
    )
    aws.ec2.modify_instance_attribute(
        InstanceId=instance_id, InstanceInitiatedShutdownBehavior={"Value": "terminate"}
    )
    return {
        "allocation_id": address["AllocationId"],
        "association_id": association["AssociationId"],
        "public_ip": address["PublicIp"],
    }


def detection(aws):
    detector = aws.guardduty.create_detector(Enable=True)["DetectorId"]
    aws.s3.create_bucket(Bucket="example-trail")
    trail = aws.cloudtrail.create_trail(
        Name="organisation",
        S3BucketName="example-trail",
        IsMultiRegionTrail=True,
        EnableLogFileValidation=True,
    )["TrailARN"]
    aws.cloudtrail.start_logging(Name="organisation")
    return {"detector": detector, "trail_arn": trail}


def full(aws):
    vpc, subnets, groups = network(aws)
    identity = profile(aws)
    by_instance = target_group(aws, "web", vpc, "instance")
    by_address = target_group(aws, "web-ip", vpc, "ip")
    launch_template = template(aws, groups["web"])
    instances = group_of(aws, "web", launch_template, subnets, 2, [by_instance])
    for member in instances:
        aws.ec2.associate_iam_instance_profile(
            InstanceId=member, IamInstanceProfile={"Name": identity["profile"]}
        )
        aws.ec2.modify_instance_metadata_options(
            InstanceId=member,
            HttpTokens="required",
            HttpEndpoint="enabled",
            HttpPutResponseHopLimit=2,
        )
    instance_id = instances[0]
    address = add_to(aws, instance_id, subnets, groups)
    instance = told(instance_of(aws, instance_id))
    aws.elbv2.register_targets(
        TargetGroupArn=by_address, Targets=[{"Id": instance["private_ip"], "Port": 443}]
    )
    aws.elb.create_load_balancer(
        LoadBalancerName="web-classic",
        Listeners=[{"Protocol": "TCP", "LoadBalancerPort": 443, "InstancePort": 443}],
        Subnets=subnets,
    )
    aws.elb.register_instances_with_load_balancer(
        LoadBalancerName="web-classic", Instances=[{"InstanceId": i} for i in instances]
    )
    return {
        **instance,
        **identity,
        **address,
        **detection(aws),
        "instances": instances,
        "subnets": subnets,
        "security_groups": groups,
        "launch_template": launch_template,
        "asg": "web",
        "target_groups": {"instance": by_instance, "ip": by_address},
        "classic_load_balancers": ["web-classic"],
    }


def launch(aws, count):
    made = aws.ec2.run_instances(
        ImageId=image(aws),
        InstanceType="t3.micro",
        MinCount=count,
        MaxCount=count,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "plain"}]}
        ],
        SubnetId=default_subnets(aws)[0],
    )
    return [i["InstanceId"] for i in made["Instances"]]


def default_subnets(aws):
    default = [{"Name": "default-for-az", "Values": ["true"]}]
    subnets = aws.ec2.describe_subnets(Filters=default)["Subnets"]
    return [s["SubnetId"] for s in sorted(subnets, key=lambda s: s["AvailabilityZone"])]


def plain(aws):
    instances = launch(aws, 1)
    return {**told(instance_of(aws, instances[0])), "instances": instances}


def fleet(aws, count):
    instances = launch(aws, count)
    subnets = default_subnets(aws)
    launch_template = aws.ec2.create_launch_template(
        LaunchTemplateName="fleet",
        LaunchTemplateData={
            "ImageId": image(aws),
            "InstanceType": "t3.micro",
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}],
        },
    )["LaunchTemplate"]["LaunchTemplateId"]
    scaled = group_of(aws, "fleet", launch_template, subnets[:2], 5)
    every = pages(aws.ec2, "describe_instances", "Reservations")
    facts = {i["InstanceId"]: told(i) for r in every for i in r["Instances"]}
    return {
        **facts[instances[0]],
        "instances": instances,
        "asg": "fleet",
        "asg_instances": scaled,
        "every": [facts[i] for i in instances + scaled],
    }


def main():
    endpoint, kind, *rest = sys.argv[1:]
    aws = Clients(endpoint)
    world = {"kind": kind, "endpoint": endpoint, **base(aws)}
    builders = {"full": full, "plain": plain, "fleet": lambda aws: fleet(aws, int(rest[0]))}
    world.update(builders[kind](aws))
    print(json.dumps(world, sort_keys=True))


if __name__ == "__main__":
    main()
