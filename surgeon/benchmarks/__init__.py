"""Measurements that anyone can repeat: plain users of the library."""
