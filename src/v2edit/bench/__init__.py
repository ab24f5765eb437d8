"""The benchmark: tasks with a known truth, V2Edit's variants and baselines on the same weights, and the report.

`v2edit.bench.command.benchmark` is what `v2edit bench` calls; what it needs torch for comes with the first job.
"""
