"""Estimates of FLOPs, bytes and seconds, made before work starts."""
