"""Formats that specimens come in, one module each; `registry` names them."""
