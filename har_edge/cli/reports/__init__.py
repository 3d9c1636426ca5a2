"""What commands print: tables, bars and summaries."""
