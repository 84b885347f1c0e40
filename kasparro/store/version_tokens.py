"""Names data versions in entity tags, so that a client shows which version it has seen."""

import hmac
import re
from functools import lru_cache
from itertools import islice

# A version in an entity tag: its number and a signature, both in hexadecimal digits.
_TOKEN = re.compile(rb"-v([0-9a-f]{1,15})\.([0-9a-f]{12})\"")
_SIGNATURE_BYTES = 6
# So many are looked at. A client needs one for each encoding and copy; more would only cost time.
TOKENS = 16


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
        """The newest data version that a list of entity tags names with its first `TOKENS` tokens, or 0."""
        return max(
            (
                int(found[1], 16)
                for found in islice(_TOKEN.finditer(tags), TOKENS)
                if hmac.compare_digest(found[2], self._signature(found[1]).encode())
            ),
            default=0,
        )

    def _signature(self, number: bytes) -> str:
        return hmac.digest(self._key, b"data version " + number, "sha256")[:_SIGNATURE_BYTES].hex()
