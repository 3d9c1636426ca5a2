"""Find which device runs which slice: profiles, the cost model, the search for a plan, and relocation."""
