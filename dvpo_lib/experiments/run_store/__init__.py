"""The run store: runs in parallel, resumable, each computed once, read only if they are what was stored.

A *spec* is a frozen dataclass with everything that its run depends on. Its class has

    inputs                    names of the fields that are paths
    not_hashed (optional)     names of the fields that change no result
    threads (optional)        threads of a run, 1 by default, so that results do not depend on the number of workers
    labels (optional)         {column: value}, the first columns of the run's tables
    execute(folder, scratch)  a method that writes the result to `folder` and may keep resumable state in `scratch`

The key of a run is a hash of the spec's fields, the bytes of its inputs, the code that it reaches through imports
(without comments and docstrings) and the versions of libraries. Finished runs lie under their key in the run store
(`.runs/`, or $DVPO_STORE), which DVC and git ignore. So an interrupted stage resumes, a changed figure retrains
nothing, and notebooks share the runs that they have in common.

A run that diverged is a result, too: it holds diverged.json with method, seed and step, and is not computed again.
"""

from dvpo_lib.experiments.run_store.keys import code_hash, file_hash, source_without_comments, spec_key, spec_name
from dvpo_lib.experiments.run_store.storage import execute_once, machine_of, store_folder, stored_problem
from dvpo_lib.experiments.run_store.sweeps import RunsFailed, SweepSettings, collect_run_tables, execute_specs

__all__ = [
    "RunsFailed",
    "SweepSettings",
    "code_hash",
    "collect_run_tables",
    "execute_once",
    "execute_specs",
    "file_hash",
    "machine_of",
    "source_without_comments",
    "spec_key",
    "spec_name",
    "store_folder",
    "stored_problem",
]
