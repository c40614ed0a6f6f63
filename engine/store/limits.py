"""What is believed of bytes from outside before memory is asked for; infra/SECURITY.md gives each limit's reason."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MAX_PHOTO_BYTES = 256 * MIB  # of one image file; the largest museum scans of BIOSCAN's sources have 60 MiB
MAX_BARCODE_BYTES = MIB  # of one stored barcode; a whole mitochondrion has 16,000 letters
MAX_META_BYTES = MIB  # of one specimen's stored JSON
MAX_OFFSET = 1 << 50  # of a member in its shard
MAX_JSON_BYTES = 64 * MIB  # of a manifest or a configuration that is read whole

MAX_JPEG_SCANS = 64  # encoders write about 10; each is a pass over all pixels
MAX_SCAN_PIXELS = 500_000_000  # scans times pixels of a progressive JPEG that a service decodes: about 5 s at the worst
