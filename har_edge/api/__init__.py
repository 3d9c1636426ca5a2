"""The public API, behind `import har_edge`: models, sensors and results."""
