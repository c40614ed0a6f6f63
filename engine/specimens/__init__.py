"""What a specimen is: its labels, columns, kinds of names, and the text that names it."""
