"""What is believed of bytes from outside before memory is asked for; infra/SECURITY.md gives each limit's reason."""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MAX_PHOTO_BYTES = 256 * MIB  # of one image file; the largest museum scans of BIOSCAN's sources have 60 MiB
MAX_BARCODE_BYTES = MIB  # of one barcode; a whole mitochondrion has 16,000 letters
MAX_META_BYTES = MIB  # of one specimen's stored JSON
MAX_OFFSET = 1 << 50  # of a member in its shard
MAX_JSON_BYTES = 64 * MIB  # of a manifest or a configuration that is read whole
MAX_PATH_LETTERS = 4096  # of a photo's path in a table: PATH_MAX of Linux

MAX_LINE_BYTES = 2 * MIB  # of a line or a quoted record of a table; the parser's blocks have 8 MiB
MAX_COLUMNS = 20_000  # of a table; Excel has 16,384
MAX_NAMED_ROWS = 100_000  # unreadable rows of a table between two blocks of readable ones; further ones are counted
MAX_ZERO_BYTES = 64 * MIB  # in a row in a text file: a sparse file, no text
MAX_RATIO = 1100  # unpacked bytes for each packed one; deflate reaches 1,032, text 20
MAX_XZ_BYTES = 256 * MIB  # of memory for an xz file's dictionary; `xz -9` asks for 64
MAX_TABLE_MEMBERS = 10_000  # of a zip that is read as a table or an archive of tables
MAX_SHEET_ROWS, MAX_SHEET_PARTS_BYTES = 1 << 20, GIB  # Excel's own limit; all parts of a workbook unpacked
MAX_ROWS_BYTES = 64 * MIB  # of rows of a source that are held at once

MAX_LAYERS, MAX_WIDTH, MAX_IMAGE_SIDE = 512, 65_536, 4096  # of a checkpoint's towers; the largest published have 64
MAX_VOCABULARY = 1 << 21  # of a text tower; the largest published has 256,000
MAX_TENSORS = 100_000  # in a file of weights

MAX_JPEG_SCANS = 64  # encoders write about 10; each is a pass over all pixels
MAX_SCAN_PIXELS = 500_000_000  # scans times pixels of a progressive JPEG: about 5 s at the worst
MAX_PAGE_PIXELS = 100_000_000  # of each page of a TIFF, 300 MB as RGB
