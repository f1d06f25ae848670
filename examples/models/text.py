"""A built-in character-level text, so that a language model has something real to learn without a download.

The text was written for this project and is in the public domain. Tokens are positions in the sorted set of its
characters; targets are the next characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

TEXT = """\
A ship that carries grain does not ask each sailor to carry every sack. The first mate looks at the holds, at the \
cranes and at the tide, and he divides the work: one crew fills the bow, one crew fills the stern, and a third moves \
sacks between the two when the balance is wrong. If the crews are well matched, nobody waits. If one crew is slow, \
all of them are slow, for the ship sails when the last sack is aboard and not before.

The same is true of sums. A long sum may be cut into short sums, and the short sums may be given to many hands, but \
in the end the parts must meet, and the meeting has a price. A good plan is not the one that cuts the most; it is the \
one that cuts where the meeting is cheap. Where a number is used by everybody, let everybody have it. Where a number \
is used once, let it stay where it was made. Where two numbers must be added, add them before they travel, for one \
small parcel goes faster than two.

An old carpenter taught his pupil in this way. Measure the board, he said, before you measure the house; the house is \
made of boards. Then measure the road to the house, because a board in the wrong town is no board at all. The pupil \
wrote it down, cut the boards at home, and walked only once.
"""
ALPHABET = tuple(sorted(set(TEXT)))


class LanguageConfig(Protocol):
    """What a configuration must tell: sizes, and whether targets are cut out of the tokens."""

    @property
    def batch(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def shift(self) -> bool: ...


def encode(text: str) -> np.ndarray:
    """Token of each character, i32. Raises ValueError for a character that the built-in text does not have."""
    return np.array([ALPHABET.index(character) for character in text], np.int32)


def decode(tokens: np.ndarray) -> str:
    """The text of tokens in 0…len(ALPHABET)-1."""
    return "".join(ALPHABET[token] for token in tokens)


def batches(config: LanguageConfig, steps: int, seed: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the batch arguments of `steps` training steps: (tokens, targets), each (B, S) i32, or (B, S+1) tokens.

    Windows start at random places of the text, which repeats as often as a window needs. A vocabulary smaller
    than the alphabet folds tokens together.
    """
    generator = np.random.default_rng(seed)
    tokens = encode(TEXT) % config.vocabulary
    window = np.arange(config.sequence + 1)
    for _ in range(steps):
        starts = generator.integers(0, len(tokens), (config.batch, 1))
        chosen = tokens[(starts + window) % len(tokens)].astype(np.int32)
        yield (chosen,) if config.shift else (chosen[:, :-1], chosen[:, 1:])
