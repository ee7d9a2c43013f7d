"""What the answers of object stores mean for the person who has to do something about them."""

import errno
import re

_CREDENTIALS = re.compile(
    r"SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|INVALID_ACCESS_KEY_ID|InvalidAccessKeyId|INVALID_CLIENT_TOKEN_ID"
    r"|ExpiredToken|InvalidToken|UNAUTHENTICATED|HTTP status 401|invalid_grant|OAuth2 access token|token request"
)
_ACCESS = re.compile(r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|HTTP status 403|403 Forbidden")
_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket")
_REGION = re.compile(r"AuthorizationHeaderMalformed|PermanentRedirect|HTTP status 301|IllegalLocationConstraint")
_REGION_NAMES = re.compile(r"region '([\w-]+)' is wrong; expecting '([\w-]+)'")
_UNREACHABLE = re.compile(r"NETWORK_CONNECTION|curlCode: (?:6|7|28)\b|CURL error \[(?:6|7|28)\]")
_LASTING_ANSWER = re.compile(r"AWS Error (?:NO_SUCH_KEY|INVALID_\w+)|HTTP status 4(?:00|04|05|12)")

_LASTING_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_LASTING_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG})


def meaning(answer: str) -> str:
    """Put an answer into words that say what to do; empty where it says so itself.

    Args:
        answer: text of an error of the provider's client.
    """
    names = _REGION_NAMES.search(answer)
    if names:
        return (
            f"the region is wrong: expected {names[2]!r}, found {names[1]!r}; add region={names[2]} to the address "
            "(s3://bucket/prefix?region=...) or set AWS_REGION"
        )
    if _REGION.search(answer):
        return "the region is wrong: add the bucket's own to the address (s3://bucket/prefix?region=...)"
    if _CREDENTIALS.search(answer):
        return (
            "the credentials are wrong or have expired: expected a key and a secret that the store knows, in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a profile or the machine's role"
        )
    if _ACCESS.search(answer):
        return (
            "access is denied: the credentials that were found do not permit this, or none were found; permit listing, "
            "reading, writing and deleting below the prefix"
        )
    if _BUCKET.search(answer):
        return "the bucket does not exist: make it, or correct the address in the job"
    if _UNREACHABLE.search(answer):
        return "the store cannot be reached: check the endpoint in the address, and the network"
    return ""


def is_lasting(error: Exception) -> bool:
    """Whether a repetition of what failed would fail the same way.

    Args:
        error: what a store's client raised.
    """
    if isinstance(error, _LASTING_ERRORS) or (isinstance(error, OSError) and error.errno in _LASTING_NUMBERS):
        return True
    patterns = (_CREDENTIALS, _ACCESS, _BUCKET, _REGION, _LASTING_ANSWER)
    return any(pattern.search(str(error)) for pattern in patterns)
