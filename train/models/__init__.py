"""The towers, the fusion gate, and the checkpoint that holds them."""
