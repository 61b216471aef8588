"""Files of the project that no result depends on: a change of one reruns no stage and discards no checkpoint.

They are dependencies of no stage in dvc.yaml, nor part of the key under which unfinished work is resumed. What decides a result (a seed, a
schedule, a loss, a model, a format, how many workers share a batch) does not belong into any of them.
"""

NO_RESULT_DEPENDS_ON = {
    "errors.py": "words what is wrong",
    "kinds.py": "says which values a kind may have, and which kinds go together",
    "params.py": "checks the values that dvc.yaml lists as params, and hands them on as they are",
    "plumbing.py": "is this list",
    "progress.py": "shows how far a stage is",
    "publishing.py": "puts finished outputs into place",
    "resume_key.py": "says which unfinished work may go on",
    "scratch.py": "keeps unfinished work",
    "sections.py": "says which values are allowed; it has no defaults",
    "source_check.py": "refuses a source that DVC cannot take",
    "stage.py": "calls a stage's run; arm and seed come from its command, which DVC compares",
    "temporary.py": "gives a process a folder for temporary files",
    "validation.py": "words what is wrong with a value",
    "yaml_file.py": "reads a file, or refuses one that can be read in two ways",
    "training/cluster.py": "starts and watches Ray, whose tasks are given all that they compute with",
    "training/footprint.py": "refuses what cannot fit into memory",
    "training/live.py": "shows training while it runs",
    "training/launch.py": "starts training here or on workers, as many as training/workers.py says; their ranks matter in training/loop.py",
    "training/pictures.py": "draws what training/live.py shows",
}

# Of these neither what they import: they compute with models, and tests/training/test_live.py holds that they change no byte.
LOOKING_ON = {"training/pictures.py"}
