"""What a user can name as images, and the `Source` of each: nothing is decoded here.

| a user names | it is read by |
|---|---|
| a file, a folder, a glob, `shard-{000..012}.tar`, `-` | `local_files` |
| `https://...`, `http://...` | `remote.fetch` |
| `x.tar`, also below a folder | `webdataset` |
| `x.csv`, `x.tsv`, `x.jsonl` | `tables` |
| `x.parquet` | `parquet` |
| `hf-dataset:org/name:split` | `hf_datasets` |
| `s3://bucket/...`, `gs://...`, ... | `remote.fsspec_files` |

The contents of a container are listed, not read: a `Source` says where its bytes are.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
