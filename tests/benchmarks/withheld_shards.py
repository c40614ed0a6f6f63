"""Shards whose model never meets some species: the same tars, with another index.

    python -m tests.benchmarks.withheld_shards SHARDS OUT

The species of `barcode_queries.withheld_species` (a fifth of those that share a genus) leave train and val for
`other_heldout`; their specimens of test become `test_unseen`. A model trained on OUT is measured with
`python -m train.evaluate --shards OUT --calibration`.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.barcode_queries import Side, withheld_species


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    index = pq.read_table(options.shards / "index.parquet")
    split = np.array(index["split"].to_pylist(), dtype=object)
    gone = withheld_species(Side(index.filter(pa.array(split == "train")), []))
    out = np.isin(np.array([name or "" for name in index["species"].to_pylist()]), sorted(gone))
    split[out & (split == "test")] = "test_unseen"
    split[out & (split != "test_unseen")] = "other_heldout"
    options.out.mkdir(parents=True)
    for file in options.shards.iterdir():
        if file.name != "index.parquet":
            os.link(file, options.out / file.name)
    place = index.schema.get_field_index("split")
    column = pa.array(split.tolist()).cast(index.schema.field("split").type)
    pq.write_table(index.set_column(place, index.schema.field("split"), column), options.out / "index.parquet")
    print(f"{len(gone)} species withheld: {(split == 'test_unseen').sum()} queries, {out.sum()} specimens in all")


if __name__ == "__main__":
    main()
