"""What a program of your own uses, behind `import har_edge`: models, sensors and results."""
