"""Where specimens lie: local folders and URLs, WebDataset tars, and the index beside them."""
