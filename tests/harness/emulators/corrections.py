"""Corrections to moto 5.2.5 where it departs from AWS in what containment rests on.

Each would make a right program look wrong, or a wrong one look right. Applied by serve.py in the
server's own process; nothing on disk changes. To be looked at again with every version of moto.
"""

import base64
import hashlib
import json
import threading
from functools import cache
from types import SimpleNamespace
from urllib.parse import urlparse

from moto import backends
from moto.core import responses, utils
from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, BaseResponse
from moto.core.utils import utcnow
from moto.ec2 import ec2_backends
from moto.ec2.exceptions import InvalidSecurityGroupNotFoundError
from moto.ec2.models import elastic_block_store, elastic_network_interfaces
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.elastic_block_store import EBSBackend
from moto.ec2.models.elastic_network_interfaces import NetworkInterface, NetworkInterfaceBackend
from moto.ec2.models.instances import Instance, InstanceBackend
from moto.ec2.models.tags import TagBackend
from moto.ec2.responses.elastic_network_interfaces import ElasticNetworkInterfaces
from moto.ec2.responses.instances import InstanceResponse
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix
from moto.iam.access_control import IAMPolicyStatement, PermissionResult
from moto.instance_metadata import urls as instance_metadata
from moto.instance_metadata.responses import InstanceMetadataResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.s3.exceptions import S3AccessDeniedError
from moto.s3.models import S3Backend
from moto.s3.responses import S3Response
from moto.s3.utils import _VersionedKeyStore

import stacks

# The line of its user data that makes an instance a clean room.
ROOM = "#cleanroom-room "


def apply():
    groups_belong_to_interfaces()
    unknown_groups_are_refused()
    public_addresses_can_be_given_up()
    shutdown_behaviour_is_kept()
    metadata_options_are_changed_one_by_one()
    connections_count_as_encrypted()
    what_is_lacking_is_refused_for_good()
    versioning_has_the_name_of_its_element()
    parts_are_listed_with_their_checksums()
    what_a_policy_denies_is_said_so()
    one_writer_is_first()
    one_volume_is_at_a_device()
    shared_snapshots_can_be_copied()
    the_metadata_service_is_a_rooms()
    what_is_looked_up_often_is_found_at_once()
    listings_look_where_their_prefix_leads()
    stacks.apply()


def groups_belong_to_interfaces():
    """moto shows an interface with its own groups *and* those its instance was launched with, so
    that groups replaced on the interface never read back. On AWS the instance's groups are those
    of its primary interface, in both directions."""

    def primary(instance):
        return getattr(instance, "nics", {}).get(0)

    def read(instance):
        interface = primary(instance)
        return instance._launch_groups if interface is None else list(interface._group_set)

    def write(instance, groups):
        instance._launch_groups = list(groups or [])
        interface = primary(instance)
        if interface is not None:
            interface._group_set = list(groups or [])

    Instance.security_groups = property(read, write)
    NetworkInterface.group_set = property(lambda interface: list(interface._group_set))


def unknown_groups_are_refused():
    """moto accepts a group that does not exist, which ends as no group at all."""
    original = NetworkInterfaceBackend.modify_network_interface_attribute

    def modify(self, eni_id, group_ids, source_dest_check=None, description=None):
        for group in group_ids:
            if self.get_security_group_from_id(group) is None:
                raise InvalidSecurityGroupNotFoundError(group)
        return original(self, eni_id, group_ids, source_dest_check, description)

    NetworkInterfaceBackend.modify_network_interface_attribute = modify


def public_addresses_can_be_given_up():
    """moto ignores AssociatePublicIpAddress in ModifyNetworkInterfaceAttribute: an address that
    was assigned at launch could never be given up. As on AWS, it concerns assigned addresses
    only; an Elastic IP stays."""
    original = ElasticNetworkInterfaces.modify_network_interface_attribute

    def modify(self):
        answer = original(self)
        wanted = self._get_param("AssociatePublicIpAddress")
        if wanted is None:
            return answer
        interface = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
        interface.public_ip_auto_assign = str(wanted).lower() == "true"
        elastic = interface.public_ip and self.ec2_backend.address_by_ip(
            [interface.public_ip], fail_if_not_found=False
        )
        if interface.public_ip_auto_assign:
            if not interface.public_ip:
                interface.check_auto_public_ip()
        elif not elastic:
            interface.public_ip = None
        return answer

    ElasticNetworkInterfaces.modify_network_interface_attribute = modify


def shutdown_behaviour_is_kept():
    """moto takes ModifyInstanceAttribute with InstanceInitiatedShutdownBehavior for a change of
    groups to none: the behaviour stays and the instance's groups are gone."""
    original = InstanceResponse._dot_value_instance_attribute_handler

    def handle(self):
        behaviour = self._get_param("InstanceInitiatedShutdownBehavior.Value")
        if behaviour is None:
            return original(self)
        self.error_on_dryrun()
        self.ec2_backend.modify_instance_attribute(
            self._get_param("InstanceId"), "instance_initiated_shutdown_behavior", behaviour
        )
        return True

    InstanceResponse._dot_value_instance_attribute_handler = handle


def metadata_options_are_changed_one_by_one():
    """moto forgets every option that ModifyInstanceMetadataOptions does not name; on AWS it stays
    as it was."""
    original = InstanceBackend.modify_instance_metadata_options
    kept = {
        "http_tokens": "http_tokens",
        "hop_limit": "http_put_response_hop_limit",
        "http_endpoint": "http_endpoint",
        "http_protocol": "http_protocol_ipv6",
        "metadata_tags": "instance_metadata_tags",
    }

    def modify(self, instance_id, **changes):
        current = self.get_instance(instance_id).metadata_options
        for argument, attribute in kept.items():
            if changes.get(argument) is None:
                changes[argument] = getattr(current, attribute)
        return original(self, instance_id, **changes)

    InstanceBackend.modify_instance_metadata_options = modify


def connections_count_as_encrypted():
    """moto applies a bucket policy's denials whatever their conditions, so that a bucket that
    denies plain HTTP refuses every object. Here all connections count as TLS: a statement on
    plain HTTP speaks of none of them."""
    original = IAMPolicyStatement.is_action_permitted
    plain = {"Bool": {"aws:SecureTransport": "false"}}

    def is_action_permitted(self, *arguments, **named):
        if self._statement.get("Condition") == plain:
            return PermissionResult.NEUTRAL
        return original(self, *arguments, **named)

    IAMPolicyStatement.is_action_permitted = is_action_permitted


def what_is_lacking_is_refused_for_good():
    """moto answers an operation that it has not got with status 500, which every client repeats:
    each question to it then takes a quarter of a minute. AWS refuses what it does not offer."""
    original = BaseResponse.call_action

    def call_action(self):
        try:
            return original(self)
        except NotImplementedError as error:
            # moto goes by an exception's module for the service whose form its error has.
            kind = type("Refusal", (ServiceException,), {"__module__": type(self).__module__})
            refusal = kind("UnsupportedOperation", str(error))
            _, headers, body = self.serialized(ActionResult(refusal))
            return 400, headers, body

    BaseResponse.call_action = call_action


def shared_snapshots_can_be_copied():
    """moto looks for what is to be copied in the caller's own account only; on AWS it may be
    another's that is shared with it."""
    original = EBSBackend.copy_snapshot

    def copy(self, source_snapshot_id, source_region, *arguments, **named):
        for account in list(ec2_backends):
            other = ec2_backends[account][source_region].snapshots.get(source_snapshot_id)
            if other is None or account == self.account_id:
                continue
            if self.account_id not in other.create_volume_permission_userids:
                continue
            # Seen for the time of the call, as an account sees what is shared with it.
            self.snapshots[source_snapshot_id] = other
            try:
                return original(self, source_snapshot_id, source_region, *arguments, **named)
            finally:
                del self.snapshots[source_snapshot_id]
        return original(self, source_snapshot_id, source_region, *arguments, **named)

    EBSBackend.copy_snapshot = copy


def versioning_has_the_name_of_its_element():
    """moto names the answer of GetBucketVersioning after the operation; AWS, and every client that
    looks, after what it holds."""
    original = S3Response.get_bucket_versioning

    def get(self):
        status, headers, body = original(self)
        text = body if isinstance(body, str) else body.decode()
        return status, headers, text.replace("GetBucketVersioningResponse", "VersioningConfiguration")

    S3Response.get_bucket_versioning = get


def parts_are_listed_with_their_checksums():
    """moto names the answer of ListParts after the operation; AWS, and every client that looks, after
    what it holds. And it lists no checksums, by which a client knows the parts that are there."""
    original = S3Response.list_parts

    def list_parts(self):
        status, headers, body = original(self)
        text = body if isinstance(body, str) else body.decode()
        text = text.replace("ListPartsResponse", "ListPartsResult")
        upload = self.backend.get_bucket(self.bucket_name).multiparts[self._get_param("uploadId")]
        if upload.metadata.get("x-amz-checksum-algorithm") == "SHA256":
            for number, part in upload.parts.items():
                digest = base64.b64encode(hashlib.sha256(part.value).digest()).decode()
                element = f"<PartNumber>{number}</PartNumber>"
                text = text.replace(element, f"{element}<ChecksumSHA256>{digest}</ChecksumSHA256>")
        return status, headers, text

    S3Response.list_parts = list_parts


def what_a_policy_denies_is_said_so():
    """moto answers what a bucket's policy denies with a status alone. AWS names the error (S3 API
    reference, "Error responses")."""
    original = S3Response._key_response

    def respond(self, request, full_url):
        answer = original(self, request, full_url)
        if answer == (403, {}, "") and request.method != "HEAD":
            raise S3AccessDeniedError()
        return answer

    S3Response._key_response = respond


def one_writer_is_first():
    """moto looks for an object and writes it in two steps, so that two who both write with If-None-Match may both be told
    that they were first. On S3 one is, and the others get 412 (User Guide, "Conditional writes")."""
    original = S3Response.put_object
    turn = threading.Lock()

    def put_object(self):
        with turn:
            return original(self)

    S3Response.put_object = put_object


def one_volume_is_at_a_device():
    """moto gives an instance of a launch template a disk at /dev/sda1 before it looks at the
    template's own: the first stays attached, and is in no mapping. On AWS there is one."""
    original = Instance.add_block_device

    def add(self, size, device_path, *arguments, **named):
        earlier = self.block_device_mapping.get(device_path)
        if earlier is not None:
            self.ec2_backend.detach_volume(earlier.volume_id, self.id, device_path)
            self.ec2_backend.delete_volume(earlier.volume_id)
        return original(self, size, device_path, *arguments, **named)

    Instance.add_block_device = add


def the_metadata_service_is_a_rooms():
    """moto's metadata service knows no user data and has the same made-up instance for everybody.
    Here it is that of the newest running instance whose user data is a clean room's, and its
    token says how long it holds and its credentials that they are good, without which AWS's SDKs take
    neither."""
    original = InstanceMetadataResponse.metadata_response

    def room():
        found = [
            (instance.launch_time, instance)
            for regions in ec2_backends.values()
            for backend in regions.values()
            for reservation in backend.reservations.values()
            for instance in reservation.instances
            if instance._state.name == "running" and ROOM in user_data(instance)
        ]
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def metadata(request, full_url, headers):
        path = urlparse(full_url).path
        instance = room()
        if path == "/latest/user-data":
            return (200, {}, user_data(instance)) if instance else (404, {}, "")
        if path == "/latest/meta-data/instance-id" and instance:
            return 200, {}, instance.id
        answer = original(request, full_url, headers)
        if path == "/latest/api/token":
            return answer[0], {"x-aws-ec2-metadata-token-ttl-seconds": "21600"}, answer[2]
        if path.startswith("/latest/meta-data/iam/security-credentials/") and path[-1] != "/":
            now = utcnow().strftime("%Y-%m-%dT%H:%M:%SZ")
            more = {"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": now}
            return answer[0], answer[1], json.dumps({**json.loads(answer[2]), **more})
        return answer

    instance_metadata.url_paths["{0}/(?P<path>.+)"] = metadata

    # The dispatcher takes what is not below meta-data/ for a bucket's name.
    call = DomainDispatcherApplication.__call__

    def dispatch(self, environ, start_response):
        if environ.get("PATH_INFO") == "/latest/user-data":
            environ["PATH_INFO"] = "/latest/meta-data/user-data"
        return call(self, environ, start_response)

    DomainDispatcherApplication.__call__ = dispatch


def user_data(instance):
    """The user data of an instance as text, however it was given."""
    given = getattr(instance, "user_data", None) or b""
    given = given if isinstance(given, bytes) else str(given).encode()
    try:
        return base64.b64decode(given, validate=True).decode()
    except ValueError:
        return given.decode(errors="replace")


def attached_to(resource):
    """The id of the instance that an interface, or a volume's attachment, names."""
    instance = getattr(resource, "instance", None)
    if instance is None:
        instance = getattr(getattr(resource, "attachment", None), "instance", None)
    return instance and instance.id


def what_is_looked_up_often_is_found_at_once():
    """For the tags of one resource moto goes through those of all, and for each filter of each listing through that for every
    resource: among a thousand instances a call takes a second. And for every request it lists its own folder and a class's
    methods, and looks for models of services that it has."""
    original = TagBackend.describe_tags

    def describe_tags(self, filters=None):
        names = (filters or {}).get("resource-id", [])
        plain = len(names) == 1 and not any(wild in names[0] for wild in "*?[\\")
        if not plain or len(filters) > 1:
            return original(self, filters)
        kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(names[0]), "")
        tags = dict(self.tags.get(names[0], {}))
        return [
            {"resource_id": names[0], "key": key, "value": value, "resource_type": kind}
            for key, value in tags.items()
        ]

    TagBackend.describe_tags = describe_tags
    tagged = TaggedEC2Resource.get_filter_value

    def get_filter_value(self, name, method=None):
        if name.startswith("tag:"):
            return self.ec2_backend.tags.get(self.id, {}).get(name[len("tag:") :])
        return tagged(self, name, method)

    TaggedEC2Resource.get_filter_value = get_filter_value
    every = elastic_block_store.generic_filter

    def generic_filter(filters, resources):
        names = (filters or {}).get("attachment.instance-id")
        if names and not any(wild in name for name in names for wild in "*?["):
            resources = [r for r in resources if attached_to(r) in names]
        return every(filters, resources)

    for module in (elastic_block_store, elastic_network_interfaces):
        module.generic_filter = generic_filter
    modules = frozenset(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    responses.method_names_from_class = cache(responses.method_names_from_class)
    utils.service_name_from_moto_package_name = cache(utils.service_name_from_moto_package_name)


def listings_look_where_their_prefix_leads():
    """For each listing moto copies the names of the whole bucket and goes through them. Here it goes through those that begin
    with the same two parts, such as a case's."""

    def folder(name):
        return tuple(name.split("/", 2)[:2])

    def remembering(write):
        def remember(self, name, value):
            folders = self.__dict__.setdefault("folders", {})
            folders.setdefault(folder(name), {})[name] = None
            write(self, name, value)

        return remember

    for name in ("__setitem__", "setlist"):
        setattr(_VersionedKeyStore, name, remembering(getattr(_VersionedKeyStore, name)))
    list_objects = S3Backend.list_objects

    def list_few(self, bucket, prefix, *arguments, **named):
        if (prefix or "").count("/") < 2:
            return list_objects(self, bucket, prefix, *arguments, **named)
        names = list(getattr(bucket.keys, "folders", {}).get(folder(prefix), ()))
        found = {name: bucket.keys.get(name) for name in names}
        few = SimpleNamespace(keys={name: key for name, key in found.items() if key is not None})
        return list_objects(self, few, prefix, *arguments, **named)

    S3Backend.list_objects = list_few
