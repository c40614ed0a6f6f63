"""Other projects' names of splits, and which of ours each one is.

Ours are those of the bioscan-dataset package for BIOSCAN-5M; BIOSCAN-1M and CLIBD have their own, of which the package
declares some as aliases. CLIBD's three groups of keys become `key_unseen`: references that are never trained on, all
of them together what CLIBD calls all_keys, the seen species' included. Its species with a single record are held out.
"""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

SPLIT_ALIASES: Mapping[str, str] = {
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "training": "train",
    "testing": "test",
    "no_split": "pretrain",
    "train_seen": "train",
    "val_seen": "val",
    "test_seen": "test",
    "seen_keys": "key_unseen",
    "val_unseen_keys": "key_unseen",
    "test_unseen_keys": "key_unseen",
    "unseen_keys": "key_unseen",
    "all_keys": "key_unseen",
    "single_species": "other_heldout",
}

CLIBD_PARTITIONS = (
    "no_split",
    "train_seen",
    "seen_keys",
    "single_species",
    "val_seen",
    "val_unseen",
    "val_unseen_keys",
    "test_seen",
    "test_unseen",
    "test_unseen_keys",
)
"""CLIBD's partition files of BIOSCAN-1M that do not overlap (all_keys and no_split_and_seen_train are unions)."""


def our_splits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column of split names with aliases replaced, in lower case; unknown names stay, null stays."""
    split = pc.utf8_lower(column)
    for word, name in SPLIT_ALIASES.items():
        split = pc.if_else(pc.equal(split, word), name, split)
    return split
