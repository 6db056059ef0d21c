"""Dataset formats, one file each: they convert records to cases."""
