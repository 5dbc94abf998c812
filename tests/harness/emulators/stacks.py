"""Corrections to moto 5.2.5 where CloudFormation makes something else of a clean room than AWS does.

Applied with those in corrections.py, in the server's own process. What is still missing: the resolver's DNS firewall is a name
without effect, CreationPolicy is not waited for, and no stack ever fails.
"""

from moto.cloudformation import models, parsing, responses
from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import Event, Stack
from moto.cloudformation.responses import CloudFormationResponse
from moto.core.responses import EmptyResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import Volume
from moto.ec2.models.instances import Instance
from moto.ec2.models.route_tables import RouteTable
from moto.ec2.models.security_groups import SecurityGroupIngress
from moto.ec2.models.vpcs import VPCEndPoint
from moto.ssm.models import Document


def apply():
    volumes_come_from_their_snapshots()
    instances_are_as_described()
    the_end_of_an_instance_lets_go_of_its_volumes()
    documents_are_json_unless_told()
    signals_are_recorded()
    types_that_moto_lacks_have_names()
    only_what_was_made_is_listed()
    stacks_delete_what_they_made()
    conditions_may_name_conditions()
    ingress_rules_have_names()


def conditions_may_name_conditions():
    """moto reads !Condition as a function that it does not know: what names a condition so is
    never made."""
    for module in (models, responses):
        original = module.yaml_tag_constructor

        def construct(loader, tag, node, original=original):
            if tag == "!Condition":
                return {"Condition": node.value}
            return original(loader, tag, node)

        module.yaml_tag_constructor = construct


def ingress_rules_have_names():
    """moto shows the rule itself, as Python prints it, where a template names it."""
    SecurityGroupIngress.physical_resource_id = property(
        lambda rule: f"sgr-{rule.security_group.id.removeprefix('sg-')}"
    )


def only_what_was_made_is_listed():
    """moto lists resources whose condition did not hold, without a name."""

    def made(self):
        return [resource for resource in self.resource_map.values() if resource is not None]

    Stack.stack_resources = property(made)


def stacks_delete_what_they_made():
    """moto leaves volumes, route tables and endpoints of a deleted stack, and deletes the rest in
    any order until no more goes. On AWS all goes, the last made first."""
    deletions = {
        Volume: lambda backend, volume: backend.delete_volume(volume.id),
        RouteTable: lambda backend, table: backend.delete_route_table(table.id),
        VPCEndPoint: lambda backend, endpoint: backend.delete_vpc_endpoints([endpoint.id]),
    }
    for kind, deletion in deletions.items():
        kind.delete = lambda self, _account, _region, deletion=deletion: deletion(
            self.ec2_backend, self
        )

    def delete(self):
        # What a resource names was made before it, and parameters are among them.
        for name in reversed(list(self._parsed_resources)):
            made, described = self._parsed_resources[name], self._resource_json_map.get(name)
            if described is None or made is None or described.get("DeletionPolicy") == "Retain":
                continue
            self._delete_resource(made, described)
            self._parsed_resources.pop(name)

    parsing.ResourceMap.delete = delete


# Types of the room's template that moto does not know, and what their ids begin with.
LACKED = {
    "AWS::CloudFormation::WaitCondition": "wait",
    "AWS::Route53Resolver::FirewallDomainList": "rslvr-fdl",
    "AWS::Route53Resolver::FirewallRuleGroup": "rslvr-frg",
    "AWS::Route53Resolver::FirewallRuleGroupAssociation": "rslvr-frgassoc",
}


def types_that_moto_lacks_have_names():
    """moto passes over types that it does not know, and then lists resources without a name, which
    no client can read."""

    # Not moto's own base class: it counts its instances by the module that they are declared in.
    class Named:
        def __init__(self, identifier):
            self.physical_resource_id = identifier

        def is_created(self):
            return True

        @classmethod
        def create_from_cloudformation_json(cls, name, _json, _account, _region, **kwargs):
            return cls(f"{LACKED[kwargs['ResourceType']]}-{name.rsplit('-', 1)[-1].lower()}")

        @classmethod
        def update_from_cloudformation_json(cls, original, *_arguments, **_named):
            return original

        @classmethod
        def delete_from_cloudformation_json(cls, *_arguments, **_named):
            pass

    original = parsing.resource_class_from_type

    def find(resource_type):
        return Named if resource_type in LACKED else original(resource_type)

    parsing.resource_class_from_type = find


def volumes_come_from_their_snapshots():
    """moto's AWS::EC2::Volume knows Size and AvailabilityZone alone, and refuses a volume whose
    size is its snapshot's."""

    def create(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs):
        properties = cloudformation_json["Properties"]

        def number(name):
            return int(properties[name]) if properties.get(name) else None

        backend = ec2_backends[account_id][region_name]
        volume = backend.create_volume(
            size=number("Size"),
            zone_name=properties.get("AvailabilityZone"),
            snapshot_id=properties.get("SnapshotId"),
            encrypted=str(properties.get("Encrypted")).lower() == "true",
            kms_key_id=properties.get("KmsKeyId"),
            volume_type=properties.get("VolumeType"),
            iops=number("Iops"),
            throughput=number("Throughput"),
        )
        volume.add_tags({tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])})
        return volume

    Volume.create_from_cloudformation_json = classmethod(create)


def instances_are_as_described():
    """moto's AWS::EC2::Instance passes over NetworkInterfaces, MetadataOptions and the shutdown
    behaviour: it would be in the default VPC, in the default group, with IMDSv1."""

    def create(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs):
        properties = cloudformation_json["Properties"]
        interface = (properties.get("NetworkInterfaces") or [{}])[0]
        backend = ec2_backends[account_id][region_name]
        reservation = backend.run_instances(
            image_id=properties["ImageId"],
            user_data=properties.get("UserData"),
            count=1,
            security_group_names=properties.get("SecurityGroups", []),
            security_group_ids=interface.get("GroupSet") or properties.get("SecurityGroupIds", []),
            instance_type=properties.get("InstanceType", "m1.small"),
            is_instance_type_default=not properties.get("InstanceType"),
            subnet_id=interface.get("SubnetId") or properties.get("SubnetId"),
            associate_public_ip=interface.get("AssociatePublicIpAddress"),
            key_name=properties.get("KeyName"),
            private_ip=properties.get("PrivateIpAddress"),
            block_device_mappings=properties.get("BlockDeviceMappings", {}),
            ebs_optimized=properties.get("EbsOptimized", False),
            instance_initiated_shutdown_behavior=properties.get("InstanceInitiatedShutdownBehavior"),
            metadata_options=properties.get("MetadataOptions", {}),
            region_name=region_name,
        )
        instance = reservation.instances[0]
        tags = {tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])}
        instance.add_tags(tags)
        if properties.get("PropagateTagsToVolumeOnCreation"):
            for _, device in instance.get_block_device_mapping:
                backend.volumes[device.volume_id].add_tags(tags)
        profile = properties.get("IamInstanceProfile")
        if profile:
            backend.associate_iam_instance_profile(
                instance_id=instance.id, iam_instance_profile_name=profile
            )
        return instance

    Instance.create_from_cloudformation_json = classmethod(create)


def the_end_of_an_instance_lets_go_of_its_volumes():
    """moto leaves volumes that outlive their instance attached to it, for good: they could never
    be deleted."""
    original = Instance.terminate

    def terminate(self):
        answer = original(self)
        for volume in list(self.ec2_backend.volumes.values()):
            attachment = volume.attachment
            if attachment is not None and attachment.instance.id == self.id:
                self.ec2_backend.detach_volume(volume.id, self.id, attachment.device)
        return answer

    Instance.terminate = terminate


def documents_are_json_unless_told():
    """moto's AWS::SSM::Document has no format where none is given; on AWS it is JSON."""
    original = Document.create_from_cloudformation_json.__func__

    def create(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs):
        cloudformation_json["Properties"].setdefault("DocumentFormat", "JSON")
        return original(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs)

    Document.create_from_cloudformation_json = classmethod(create)


def signals_are_recorded():
    """moto has no SignalResource. A signal changes nothing here, since nothing waits for it; as on
    AWS, it is an event of the stack."""

    def signal(self):
        name, logical = self._get_param("StackName"), self._get_param("LogicalResourceId")
        unique, status = self._get_param("UniqueId"), self._get_param("Status")
        stacks = self.cloudformation_backend.stacks.values()
        stack = next((s for s in stacks if name in (s.name, s.stack_id)), None)
        if stack is None:
            raise ValidationError(message=f"Stack:{name} does not exist")
        resource = stack.template_dict["Resources"].get(logical)
        if resource is None or "CreationPolicy" not in resource:
            raise ValidationError(
                message=f"Resource {logical} does not exist for stack {name}, or waits for no signal"
            )
        if status not in ("SUCCESS", "FAILURE"):
            raise ValidationError(
                message=f"Value '{status}' at 'status' failed to satisfy constraint: "
                "Member must satisfy enum value set: [SUCCESS, FAILURE]"
            )
        made = stack.resource_map.get(logical)
        stack.events.append(
            Event(
                stack_id=stack.stack_id,
                stack_name=stack.name,
                logical_resource_id=logical,
                physical_resource_id=getattr(made, "physical_resource_id", "") or "",
                resource_type=resource["Type"],
                resource_status="CREATE_IN_PROGRESS",
                resource_status_reason=f"Received {status} signal with UniqueId {unique}",
                resource_properties=None,
            )
        )
        return EmptyResult()

    CloudFormationResponse.signal_resource = signal
