"""Has a bucket deny writing objects of these names, in whatever folder, and without names takes that back.

    bucket.py ENDPOINT BUCKET [NAME]...

The bucket's other statements stay. Prints its policy.
"""

import json
import sys

from aws import Clients

SID = "DeniedByTest"


def main():
    endpoint, bucket, *names = sys.argv[1:]
    s3 = Clients(endpoint).s3
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    policy["Statement"] = [s for s in policy["Statement"] if s.get("Sid") != SID]
    if names:
        denied = {
            "Sid": SID,
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:PutObject",
            "Resource": [f"arn:aws:s3:::{bucket}/*/{name}" for name in names],
        }
        policy["Statement"].append(denied)
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    print(json.dumps(policy))


if __name__ == "__main__":
    main()
