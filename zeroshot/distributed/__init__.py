"""The same job over shards: by this process, by one for each device, by a fleet, or on Ray.

`plan` fixes the inputs and cuts them into shards; `folder` is the output, where every finished
shard has a mark; `layouts` says what a shard's files are; `shards` has the one function that all
of them run, `process_shard`.
"""
