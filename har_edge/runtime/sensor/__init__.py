"""A sensor: windows in, reduced messages out, each kept until its result has come."""
