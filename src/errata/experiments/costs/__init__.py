"""What work will take, in FLOPs, bytes and seconds, before it starts."""
