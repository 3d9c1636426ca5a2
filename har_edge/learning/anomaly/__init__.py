"""Anomalies in pictures: features, their statistics over normal pictures, and detectors made of both."""
