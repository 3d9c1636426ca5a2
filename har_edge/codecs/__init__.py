"""Window to fewer bytes: one file a method, one Reducer protocol."""
