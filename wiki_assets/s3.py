"""Object stores of the S3 protocol: s3fs, with errors that say what to do, and without its surprises.

What a store refuses, or does not do for want of it being there, is raised by every request as one of ours. An object
that is not there stays a `FileNotFoundError`, and one that must not be there yet but is, a `FileExistsError`.
"""

import os
from typing import Any

from aiohttp import ClientError as ConnectionFailed
from botocore.exceptions import BotoCoreError, HTTPClientError, NoCredentialsError, PartialCredentialsError
from botocore.exceptions import ConnectionError as NotConnected
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from wiki_assets.errors import StoreAway, StoreRefused
from wiki_assets.settings import shown

PART_BYTES = 32 << 20  # of a multipart upload; a file below twice that goes in one piece
_ATTEMPTS = 4  # of the client, beside those of s3fs; AWS_MAX_ATTEMPTS says otherwise
_BUSY = (
    "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError",
    "RequestTimeout", "500", "502", "503", "504",
)  # fmt: skip
_NOT_NOW = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class Buckets(S3FileSystem):
    """The buckets of one store. No listing is kept, and no bucket is ever made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        waits: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 60}
        if not os.environ.get("AWS_MAX_ATTEMPTS"):
            waits["retries"] = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
        kwargs["config_kwargs"] = {**waits, **(kwargs.get("config_kwargs") or {})}
        super().__init__(*args, **kwargs)

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *akwarglist, **kwargs)
        except Exception as error:
            raise self._named(error, kwargs) from error

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(self, path: Any, *args: Any, **kwargs: Any) -> bytes:
        """By one request: what is read whole is small, and need not be asked for its size."""
        return await super()._cat_file(path, *args, **{"max_concurrency": 1, **kwargs})

    async def _put_file(self, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> None:
        await super()._put_file(lpath, rpath, *args, **{"chunksize": PART_BYTES, **kwargs})

    async def _mkdir(self, path: str, acl: Any = False, create_parents: bool = True, **kwargs: Any) -> None:
        """Nothing: there are no folders, and a bucket that is not there was misspelt."""

    mkdir = sync_wrapper(_mkdir)

    def _named(self, error: Exception, request: dict[str, Any]) -> Exception:
        """The error of a request as one of ours, where it is about the store; else as it is."""
        bucket, address = f"s3://{request.get('Bucket', '')}", self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
        at = f" at {shown(address)}" if address else ""
        response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
        code = str(response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return StoreRefused(f"{bucket}: no such bucket{at}: make it, or correct WIKI_ASSETS_ROOT")
        if code in _NOT_NOW and request.get("IfNoneMatch"):
            return FileExistsError(f"{bucket}/{request['Key']}")
        if isinstance(error, FileNotFoundError | FileExistsError):
            return error
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return StoreRefused(
                f"{bucket}: no credentials{at}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or give this machine a role"
            )
        if isinstance(error, PermissionError):
            return StoreRefused(
                f"{bucket}: the store{at} does not let us in ({code or error}): check the credentials, and that they "
                "may list the bucket, and read, write and delete in it"
            )
        if code in _BUSY:
            return StoreAway(
                f"{bucket}: the store{at} still answers {code} after several attempts: run again later, "
                "or with fewer tasks at once"
            )
        if code:
            return StoreRefused(f"{bucket}: the store{at} refuses {request.get('Key', 'a request')}: {_line(error)}")
        if isinstance(error, HTTPClientError | NotConnected | ConnectionFailed | OSError):
            return StoreAway(
                f"{bucket}: no answer, or half of one, from the store{at} ({_line(error)}): check the address and the "
                "network, then run again"
            )
        if isinstance(error, BotoCoreError):
            return StoreRefused(f"{bucket}: cannot be asked for{at}: {_line(error)}: correct WIKI_ASSETS_ROOT or AWS_…")
        return error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
