"""What runs on a device that fills whatever stages it is told to."""
