"""Run a task over shards: in this process, in one process per device, on many machines, or on Ray.

`sharding` fixes the inputs and splits them into shards. `folder` is the output folder, where each
finished shard has a done-mark. `layouts` defines the files of a shard. `worker` has the function
that every process calls, `process_shard`.
"""
