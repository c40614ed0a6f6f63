"""`python -m serve.bulk`: see `serve.bulk.job`."""

import sys

from serve.bulk.job import main

if __name__ == "__main__":
    sys.exit(main())
