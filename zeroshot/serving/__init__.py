"""`zeroshot serve` and `zeroshot mcp`: one thread owns the models, and many ask it.

| file | what |
|---|---|
| `batcher` | the thread that owns the models; requests of one kind in batches |
| `engine` | requests to the same tasks and rows as those of the command line |
| `folders` | the served folders: their images, embeddings, changes on disk |
| `indexing`, `served_file` | embedding them in short turns; reading one for a request |
| `small_copies` | thumbnails, without metadata |
| `operations` | what a request may say, from the declarations of the options |
| `web/` | the page and the API |
| `mcp_tools` | the same for assistants |
| `start`, `serve_commands` | `zeroshot.serve`, and the commands |
"""
