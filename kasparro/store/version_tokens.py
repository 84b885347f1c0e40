"""Names data versions in entity tags, so that a client shows which version it has seen."""

import hmac
import re
from functools import lru_cache

# A version in an entity tag: its number and a signature, both in hexadecimal digits.
_TOKEN = re.compile(rb"-v([0-9a-f]{1,15})\.([0-9a-f]{12})\"")
_SIGNATURE_BYTES = 6


class VersionTokens:
    """The tokens of the data versions of one database.

    They are signed with the key of its cursors. So a client can name only versions that it was given: a token
    of another database, or an invented one, names none.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        # All responses of a data version have the same token.
        self.token = lru_cache(maxsize=64)(self._token)

    def _token(self, version: int) -> str:
        number = f"{version:x}"
        return f"-v{number}.{self._signature(number.encode())}"

    def newest(self, tags: bytes) -> int:
        """The newest data version that a list of entity tags names; 0 if it names none."""
        return max(
            (
                int(number, 16)
                for number, signature in _TOKEN.findall(tags)
                if hmac.compare_digest(signature, self._signature(number).encode())
            ),
            default=0,
        )

    def _signature(self, number: bytes) -> str:
        return hmac.digest(self._key, b"data version " + number, "sha256")[:_SIGNATURE_BYTES].hex()
