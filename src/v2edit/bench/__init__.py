"""The benchmark: tasks whose true result is known, V2Edit's variants and baselines on the same weights, a report."""
