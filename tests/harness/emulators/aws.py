"""Clients for one emulator, which can not reach AWS.

The endpoint is on this machine or nothing is called, and the keys are the ones in AWS's
documentation.
"""

import sys

import boto3
from botocore.config import Config

REGION = "us-east-1"


class Clients:
    """Clients by service name, made once each: clients.ec2, clients["elbv2"]. Of two addresses with a comma between, the
    second one is S3's."""

    def __init__(self, endpoint):
        endpoint, _, store = endpoint.partition(",")
        for address in (endpoint, store or endpoint):
            if not address.startswith("http://127.0.0.1:"):
                sys.exit(f"{address} is no emulator: the address must be http://127.0.0.1:PORT")
        self._session = boto3.session.Session(
            aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
            aws_secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            region_name=REGION,
        )
        self._endpoint = endpoint
        self._store = store or endpoint
        self._made = {}

    def __getitem__(self, service):
        if service not in self._made:
            self._made[service] = self._session.client(
                service,
                endpoint_url=self._store if service == "s3" else self._endpoint,
                config=Config(
                    retries={"max_attempts": 0},
                    s3={"addressing_style": "path"},
                    proxies={},
                    read_timeout=60,
                ),
            )
        return self._made[service]

    def __getattr__(self, service):
        return self[service]


def pages(client, operation, member, **arguments):
    """Every item of a listing, over all its pages."""
    if not client.can_paginate(operation):
        return getattr(client, operation)(**arguments)[member]
    found = client.get_paginator(operation).paginate(**arguments)
    return [item for page in found for item in page.get(member, [])]


def only(items, what):
    """The single item, or an error that says how many there were."""
    items = list(items)
    if len(items) != 1:
        raise LookupError(f"{what}: {len(items)} instead of one")
    return items[0]
