"""The characters that no text from outside may carry to a terminal."""

import sys
import unicodedata

# Controls, surrogates, separators and invisible format characters. The two joiners are allowed, because
# ordinary words and emoji contain them.
UNSAFE_CHARACTERS = frozenset(
    char
    for char in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and char not in "\u200c\u200d"
)
