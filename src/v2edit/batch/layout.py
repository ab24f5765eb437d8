"""File names in a batch's folder, which can be stopped anywhere and looked at from elsewhere.

    NAME/            a task's run folder
    results.jsonl    a line for each task that is done, or failed and was set aside
    index.html       the summary
    errors/NAME.txt  where a task failed for no reason of the user's: the traceback
    .batch/          the lock, the tasks, and a file for each that is running

Only the process that holds the lock writes here, apart from the run folders.
"""

STATE_DIR = ".batch"
LOCK = f"{STATE_DIR}/lock"
TASK_LIST = f"{STATE_DIR}/tasks.jsonl"
RUNNING_DIR = f"{STATE_DIR}/running"
RESULTS = "results.jsonl"
PAGE = "index.html"
ERRORS_DIR = "errors"
RESERVED_NAMES = (STATE_DIR, RESULTS, PAGE, ERRORS_DIR)  # which no task may have
