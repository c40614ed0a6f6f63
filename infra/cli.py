"""Name insects from specimen photos, COI barcodes, or both: one word for every command.

taxafuse identify barcodes.fasta --reference bold_download.tsv
taxafuse ingest table specimens.csv --images photos --out shards/mine
taxafuse train --recipe moths --set data.shards=shards/mine
taxafuse library build shards/mine --out libraries/mine
taxafuse bulk barcodes.fasta --checkpoint runs/NAME --library libraries/mine --out result.parquet

`taxafuse COMMAND --help` teaches the command. Completion in bash: eval "$(taxafuse --completion)"
"""

import argparse
import importlib
import sys

from engine import commandline

COMMANDS = {  # word -> (module with `main`, words put before the user's, what it does)
    "ingest": ("engine.main", ["ingest"], "write photos and barcodes of any format as shards"),
    "inspect": ("engine.main", ["inspect"], "count what shards hold"),
    "verify": ("engine.main", ["verify"], "compare shards with their checksums"),
    "check": ("engine.main", ["check"], "find what a curator must look at before training"),
    "train": ("train.main", [], "train a model by a recipe, or go on with a run"),
    "evaluate": ("train.evaluate", [], "measure a model, fit its probabilities, write the report"),
    "benchmark": ("train.benchmark", [], "measure barcode encoders by the field's tasks"),
    "tune": ("tune.main", [], "search the best settings of a recipe"),
    "embed": ("train.embed", [], "encode photos once with a pretrained trunk"),
    "photos": ("train.photos", [], "name photos from a library of known ones, without training"),
    "identify": ("serve.identify", [], "name the specimens of files by the references of other files"),
    "library": ("serve.library", [], "build, extend or thin a reference library"),
    "bulk": ("serve.bulk.job", [], "name every specimen of a file, a folder or shards"),
    "again": ("serve.bulk.again", [], "judge a stored result by other thresholds, without the model"),
    "serve": ("serve.main", [], "answer over HTTP, with a page"),
    "export": ("serve.export", [], "write a model as a folder, or register it in MLflow"),
    "doctor": ("infra.doctor", [], "look at machine and cluster before a run"),
    "capacity": ("infra.capacity", [], "say what machines a training needs"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first word names; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    listed = "\n".join(f"  {word:9} {text}" for word, (_, _, text) in COMMANDS.items())
    parser = commandline.Parser(
        prog="taxafuse",
        description=f"{__doc__}\ncommands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="taxafuse COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the words above")
    parser.add_argument("--completion", action="version", version=f'complete -W "{" ".join(COMMANDS)}" taxafuse')
    chosen = parser.parse_args(given[:1]).command
    module, before, _ = COMMANDS[chosen]
    commandline.called_as = "taxafuse" if before else f"taxafuse {chosen}"
    command = importlib.import_module(module).main
    return int(command([*before, *given[1:]]))


if __name__ == "__main__":
    sys.exit(main())
