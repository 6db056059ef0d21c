"""Dataset formats, one file each: records of a file in, cases out."""
