"""Photos and barcodes: decode, clean, orient, tokenise, augment, damage."""
