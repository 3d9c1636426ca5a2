"""The output of commands: tables, bars and summaries."""
