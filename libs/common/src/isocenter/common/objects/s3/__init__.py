"""Objects in an S3 bucket. See `isocenter.common.objects.s3.store` for what is promised."""

from isocenter.common.objects.s3.bucket import BucketState, ensure_bucket
from isocenter.common.objects.s3.capabilities import Capabilities
from isocenter.common.objects.s3.locks import LockMode, Retention
from isocenter.common.objects.s3.store import S3ObjectStore
from isocenter.common.objects.s3.wire import S3Limits

__all__ = [
    "BucketState",
    "Capabilities",
    "LockMode",
    "Retention",
    "S3Limits",
    "S3ObjectStore",
    "ensure_bucket",
]
