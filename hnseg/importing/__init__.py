"""Networks trained by others → bundle members."""
