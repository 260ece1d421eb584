"""Measurements that anyone can repeat: plain users of the library."""

from surgeon.benchmarks import registered_nets as registered_nets
